// Vectors of the width of a level, as the compiler's own types, so that one source serves every processor.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#ifdef _OPENMP
extern "C" int omp_get_thread_num();
extern "C" int omp_get_num_threads();
#else
static int omp_get_thread_num() { return 0; }
static int omp_get_num_threads() { return 1; }
#endif

#if defined(__AMX_BF16__) || defined(PROTEIN_LM_EMULATED_TILES)
#define HAS_TILES  // matrix units; emulated to test on other processors what surrounds them
constexpr int LANES = 16, TALL = 32, AT_ONCE = 8;
#elif defined(__AVX512F__)
constexpr int LANES = 16, TALL = 8, AT_ONCE = 8;
#elif defined(__AVX__)
constexpr int LANES = 8, TALL = 4, AT_ONCE = 4;
#else
constexpr int LANES = 4, TALL = 4, AT_ONCE = 4;
#endif
// A tile of a product has TALL rows of WIDE vectors; as many as AT_ONCE rows of sums fit the registers.
constexpr int WIDE = 2, STRIP = WIDE * LANES;

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t Integers __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
typedef float LooseVector __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t LooseWords __attribute__((vector_size(LANES * 4), aligned(2), may_alias));
typedef uint16_t LooseHalves __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
typedef uint32_t Word __attribute__((may_alias));
using Half = uint16_t;  // bits of a bfloat16
#define ALWAYS inline __attribute__((always_inline))

static ALWAYS Vector all(float value) { return value - Vector{}; }
static ALWAYS Vector load(const float* from) { return *(const LooseVector*)from; }
static ALWAYS Vector load(const Half* from) {
    return (Vector)(__builtin_convertvector(*(const LooseHalves*)from, Words) << 16);
}
static ALWAYS Vector select(Integers condition, Vector yes, Vector no) {
    return condition ? yes : no;
}
static ALWAYS Vector greater(Vector left, Vector right) {  // NaN on the left stays
    return select(left < right, right, left);
}
static ALWAYS Integers lanes() {
    Integers numbers;
    for (int lane = 0; lane < LANES; ++lane) numbers[lane] = lane;
    return numbers;
}
static ALWAYS Halves rounded(Vector values) {
#if defined(__AVX512BF16__)
    return (Halves)_mm512_cvtneps_pbh((__m512)values);
#else
    Words bits = (Words)values;
    Words nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    Words is_nan = (Words)((bits & 0x7fffffffu) > 0x7f800000u);
    return __builtin_convertvector((is_nan & 0x7fc0u) | (~is_nan & nearest), Halves);
#endif
}
static ALWAYS void store(float* to, Vector values) { *(LooseVector*)to = values; }
static ALWAYS void store(Half* to, Vector values) { *(LooseHalves*)to = rounded(values); }
static ALWAYS void store(float* to, float value) { *to = value; }
static ALWAYS void store(Half* to, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    *to = value != value ? 0x7fc0 : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}
static ALWAYS float number(float value) { return value; }
static ALWAYS float number(Half value) {
    uint32_t bits = (uint32_t)value << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}
static ALWAYS float total(Vector values) {
    float sums[LANES];
    store(sums, values);
    for (int half = LANES / 2; half; half /= 2)
        for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
    return sums[0];
}
static ALWAYS Vector exponential(Vector x) {  // within 2e-7; below -87 it is 0
    const Integers vanishes = x < all(-87.0f);
    const Vector shifted = x * 1.44269504088896341f + 12582912.0f;
    const Vector power = shifted - 12582912.0f;
    const Vector rest = (x - power * 0.693359375f) - power * -2.12194440e-4f;
    Vector sum = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    const Vector scale = (Vector)(((Integers)shifted - 0x4b400000 + 127) << 23);
    return select(vanishes, Vector{}, sum * scale);
}

struct Activation {
    Vector value, slope;
};
// GELU, x F(x) with F(x) = (1 + erf(x / sqrt 2)) / 2, and its derivative; erf after Abramowitz & Stegun 1964, 7.1.26, within
// 2e-7.
static ALWAYS Activation gelu(Vector x) {
    const Integers is_negative = x < Vector{};
    const Vector size = select(is_negative, -x, x) * 0.70710678118654752f, bell = exponential(-size * size);
    const Vector t = 1.0f / (1.0f + 0.3275911f * size);
    Vector sum = t * 1.061405429f - 1.453152027f;
    sum = sum * t + 1.421413741f;
    sum = sum * t - 0.284496736f;
    sum = sum * t + 0.254829592f;
    const Vector erf = 1.0f - sum * t * bell;
    const Vector below = 0.5f * (1.0f + select(is_negative, -erf, erf));
    return {x * below, below + x * bell * 0.39894228040143268f};
}
