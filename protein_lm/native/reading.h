// What the compiled reader's formats have in common: text, codes of residues, and the arrays that records are written into.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define XXH_INLINE_ALL
#include "arrow/vendored/xxhash.h"  // comes with pyarrow

namespace reading {

using Byte = uint8_t;

struct Call {
    const Byte *head, *body, *codes;  // whole records each, in lines that end in line feeds; a code for each byte
    int64_t head_size, body_size;     // in bytes
    int64_t capacity;                 // of the arrays in records
    int32_t first_ambiguous, x, j;  // codes: those from the first ambiguous one on are looked at again; J is the last legal
    int32_t all_to_x;               // whether all ambiguous ones become X, or J alone
    Byte* tokens;                   // (head_size + body_size), as all that follows in the order of the text
    int64_t* lengths;               // (capacity), as all below
    Byte* has_ambiguous;
    Byte* ids;  // (head_size + body_size)
    int64_t* id_lengths;
    uint64_t *id_hashes, *fingerprints;  // the latter (capacity, 2)
    int32_t *taxon_ids, *cluster_sizes;
    Byte *protein_existence, *flags;
    int64_t num_tokens, num_id_bytes, num_j, num_bouz;  // results
};

struct Span {
    const Byte *start, *end;

    bool begins(const char* word) const {
        const int64_t length = std::strlen(word);
        return end - start >= length && !std::memcmp(start, word, length);
    }
    bool ends(const char* word) const {
        const int64_t length = std::strlen(word);
        return end - start >= length && !std::memcmp(end - length, word, length);
    }
    bool is(const char* word) const { return begins(word) && end - start == int64_t(std::strlen(word)); }
};

enum Flags : Byte { FRAGMENT = 1, REVIEWED = 2, UNREVIEWED = 4 };  // as in records.py

inline bool is_blank(Byte byte) { return byte <= ' '; }

inline const Byte* find(const Byte* from, const Byte* end, Byte byte) {
    return static_cast<const Byte*>(std::memchr(from, byte, end - from));
}

inline bool is_ascii(Span text) {
    Byte bits = 0;
    for (const Byte* place = text.start; place < text.end; ++place) bits |= *place;
    return bits < 0x80;
}

inline uint64_t mix(uint64_t value) {  // as in numpy_reader.py
    value += 0x9E3779B97F4A7C15u;
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
    return value ^ (value >> 31);
}

inline uint64_t hash(Span letters) {
    uint64_t result = mix(letters.end - letters.start);
    for (const Byte* place = letters.start; place < letters.end; place += 8) {
        uint64_t word = 0;
        for (int byte = 0; byte < 8 && place + byte < letters.end; ++byte) word |= uint64_t{place[byte]} << 8 * byte;
        result = mix(result ^ word);
    }
    return result;
}

// Token ids of letters: with AVX2 thirty-two at a time, if all that are residues stand in one half of a row of ASCII, else
// two at a time: the rows of letters that occur fit a processor's first cache.
struct Codes {
    static constexpr Byte ROW = 0x40, PLACES = 0x20;  // from @ to _
    uint16_t of_pairs[65536];
    Byte of_letters[256];
    bool has_vectors = false;

    // `last`: the largest code of a residue.
    Codes(const Byte* codes, int32_t last) {
        std::memcpy(of_letters, codes, 256);
#if defined(__x86_64__)
        has_vectors = __builtin_cpu_supports("avx2");
        for (int letter = 0; letter < 256; ++letter)
            if ((letter & ~(PLACES - 1)) != ROW && codes[letter] <= last) has_vectors = false;
#endif
        for (int first = 0; first < 256; ++first) {
            for (int second = 0; second < 256; ++second) {
                const Byte pair[2] = {Byte(first), Byte(second)}, result[2] = {codes[first], codes[second]};
                uint16_t place;
                std::memcpy(&place, pair, 2);
                std::memcpy(of_pairs + place, result, 2);
            }
        }
    }

    // The largest code of what is written; for letters that are no residues, any that is larger than those of residues.
    Byte write(const Byte* letters, int64_t size, Byte* to) const {
#if defined(__x86_64__)
        if (has_vectors && size >= 32) return write_vectors(letters, size, to);
#endif
        return write_pairs(letters, size, to);
    }

private:
#if defined(__x86_64__)
    __attribute__((target("avx2"))) Byte write_vectors(const Byte* letters, int64_t size, Byte* to) const {
        const __m128i halves[2] = {_mm_loadu_si128((const __m128i*)(of_letters + ROW)),
                                   _mm_loadu_si128((const __m128i*)(of_letters + ROW + PLACES / 2))};
        const __m256i low = _mm256_broadcastsi128_si256(halves[0]), high = _mm256_broadcastsi128_si256(halves[1]);
        const __m256i rows = _mm256_set1_epi8(char(~(PLACES - 1)));
        const __m256i row = _mm256_set1_epi8(ROW), places = _mm256_set1_epi8(PLACES / 2 - 1);
        __m256i largest = _mm256_setzero_si256();
        for (int64_t next = 0, place; next < size; next += 32) {
            place = next + 32 <= size ? next : size - 32;  // the last ones overlap those before
            const __m256i letter = _mm256_loadu_si256((const __m256i*)(letters + place));
            const __m256i within = _mm256_and_si256(letter, places);
            const __m256i is_high = _mm256_slli_epi16(letter, 3);  // bit 4 where the choice looks, at bit 7
            const __m256i known = _mm256_blendv_epi8(_mm256_shuffle_epi8(low, within), _mm256_shuffle_epi8(high, within), is_high);
            const __m256i is_known = _mm256_cmpeq_epi8(_mm256_and_si256(letter, rows), row);
            const __m256i code = _mm256_or_si256(known, _mm256_xor_si256(is_known, _mm256_set1_epi8(-1)));
            _mm256_storeu_si256((__m256i*)(to + place), code);
            largest = _mm256_max_epu8(largest, code);
        }
        __m128i most = _mm_max_epu8(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
        most = _mm_max_epu8(most, _mm_srli_si128(most, 8));
        most = _mm_max_epu8(most, _mm_srli_si128(most, 4));
        most = _mm_max_epu8(most, _mm_srli_si128(most, 2));
        most = _mm_max_epu8(most, _mm_srli_si128(most, 1));
        return Byte(_mm_cvtsi128_si32(most));
    }
#endif
    Byte write_pairs(const Byte* letters, int64_t size, Byte* to) const {
        int64_t place = 0;
        for (; place + 8 <= size; place += 8) {
            uint16_t pairs[4];
            std::memcpy(pairs, letters + place, 8);
            for (uint16_t& pair : pairs) pair = of_pairs[pair];
            std::memcpy(to + place, pairs, 8);
        }
        for (; place < size; ++place) to[place] = of_letters[letters[place]];
        Byte largest = 0;
        for (place = 0; place < size; ++place) largest = to[place] > largest ? to[place] : largest;
        return largest;
    }
};

// What a record says about itself.
struct Facts {
    Span id{nullptr, nullptr};
    int32_t taxon_id = 0, cluster_size = 0;
    Byte protein_existence = 0, flags = 0;
};

// Writes records into the arrays of a call.
class Records {
public:
    explicit Records(Call& arrays) : call(arrays), tokens(arrays.tokens), ids(arrays.ids) { call.num_j = call.num_bouz = 0; }

    bool has_room() const { return number < call.capacity; }
    Byte* next_tokens() const { return tokens; }

    // The next record, whose codes are written up to `end`; `largest` is the largest of them.
    void add(const Facts& facts, Byte* end, Byte largest) {
        if ((call.has_ambiguous[number] = largest >= call.first_ambiguous)) settle_ambiguous(tokens, end);
        const XXH128_hash_t fingerprint = XXH3_128bits(tokens, end - tokens);
        call.fingerprints[2 * number] = fingerprint.high64;
        call.fingerprints[2 * number + 1] = fingerprint.low64;
        call.lengths[number] = end - tokens;
        call.id_lengths[number] = facts.id.end - facts.id.start;
        call.id_hashes[number] = hash(facts.id);
        std::memcpy(ids, facts.id.start, call.id_lengths[number]);
        call.taxon_ids[number] = facts.taxon_id;
        call.cluster_sizes[number] = facts.cluster_size;
        call.protein_existence[number] = facts.protein_existence;
        call.flags[number] = facts.flags;
        ids += call.id_lengths[number++];
        tokens = end;
    }

    // Says how much there is; returns the number of records.
    int64_t finish() {
        call.num_tokens = tokens - call.tokens;
        call.num_id_bytes = ids - call.ids;
        return number;
    }

private:
    Call& call;
    Byte *tokens, *ids;
    int64_t number = 0;

    void settle_ambiguous(Byte* from, Byte* to) {
        for (; from < to; ++from) {
            if (*from < call.first_ambiguous) continue;
            call.num_j += *from == call.j;
            call.num_bouz += *from > call.x && *from < call.j;
            if (call.all_to_x || *from == call.j) *from = call.x;
        }
    }
};

// The number of records of a call's texts; -1: they are not ordinary. `read` takes the next record at `place`, or what is left
// behind the last one; false: it is at fault, or needs thought.
template <class Read>
int64_t read_texts(Call& call, Read read) {
    static const Codes codes(call.codes, call.j);  // they are the same in every call
    Records records(call);
    for (const Span text : {Span{call.head, call.head + call.head_size}, Span{call.body, call.body + call.body_size}}) {
        if (text.start < text.end && text.end[-1] != '\n') return -1;
        for (const Byte* place = text.start; place < text.end;)
            if (!records.has_room() || !read(codes, Byte(call.j), place, text.end, records)) return -1;
    }
    return records.finish();
}

}  // namespace reading
