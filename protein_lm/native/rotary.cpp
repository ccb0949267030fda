// Rotary positions on a CPU: pairs (i, i + E/2) of the channels of each head turned, in one pass over memory.

#include "vectors.h"

constexpr int MOST_PAIRS = 64;  // of a head: half of GREATEST_WIDTH in attention/backends/native_linear.py

extern "C" struct RotaryCall {
    int32_t are_bfloat16, num_threads;
    int64_t parts, batch, heads, length, width;
    const void* heads_in;                    // (parts, B, H, L, E), whose last axis is contiguous
    int64_t part_in, batch_in, head_in, token_in;  // its strides in numbers
    void* heads_out;                         // (parts, B, L, H, E), whose heads of a token lie side by side
    int64_t part_out, batch_out, token_out;
    const float *cosines, *sines;            // (L, E / 2)
};

// One head. What stands behind it in the output may be written over, where it is written later.
template <class Number>
static ALWAYS void turn(const Number* from, const float* cosines, const float* sines, int half, Number* to) {
    for (int i = 0; i < half; i += LANES) {
        const Vector first = load(from + i), second = load(from + half + i), cosine = load(cosines + i), sine = load(sines + i);
        store(to + i, first * cosine - second * sine);
    }
    for (int i = 0; i < half; i += LANES) {
        const Vector first = load(from + i), second = load(from + half + i), cosine = load(cosines + i), sine = load(sines + i);
        store(to + half + i, second * cosine + first * sine);
    }
}

// As `turn`, without a look or a write beyond the head.
template <class Number>
static void turn_alone(const Number* from, const float* cosines, const float* sines, int half, Number* to) {
    for (int i = 0; i < half; ++i) {
        const float first = number(from[i]), second = number(from[half + i]);
        store(to + i, first * cosines[i] - second * sines[i]);
        store(to + half + i, second * cosines[i] + first * sines[i]);
    }
}

template <class Number>
static void turn_all(const RotaryCall& call) {
    const int64_t num_tokens = call.parts * call.batch * call.length;
    const int half = (int)call.width / 2;
#pragma omp parallel for num_threads(call.num_threads) schedule(static)
    for (int64_t token = 0; token < num_tokens; ++token) {
        const int64_t position = token % call.length, row = token / call.length;
        const Number* from = (const Number*)call.heads_in + row / call.batch * call.part_in + row % call.batch * call.batch_in +
                             position * call.token_in;
        Number* to = (Number*)call.heads_out + row / call.batch * call.part_out + row % call.batch * call.batch_out +
                     position * call.token_out;
        float cosines[MOST_PAIRS + LANES], sines[MOST_PAIRS + LANES];
        std::memcpy(cosines, call.cosines + position * half, sizeof(float) * half);
        std::memcpy(sines, call.sines + position * half, sizeof(float) * half);
        for (int lane = 0; lane < LANES; ++lane) cosines[half + lane] = sines[half + lane] = 0;
        // A vector may reach beyond its head, into as many heads behind it.
        const int64_t careful = half % LANES == 0 ? 0 : (LANES + call.width - 1) / call.width;
        for (int64_t head = 0; head < call.heads; ++head) {
            const Number* source = from + head * call.head_in;
            Number* target = to + head * call.width;
            if (head + careful < call.heads) turn(source, cosines, sines, half, target);
            else turn_alone(source, cosines, sines, half, target);
        }
    }
}

extern "C" {
void protein_lm_rotate(const RotaryCall* call) { call->are_bfloat16 ? turn_all<Half>(*call) : turn_all<float>(*call); }
int64_t protein_lm_rotary_call_bytes() { return sizeof(RotaryCall); }
}
