// Records of FASTA -> token ids, identifiers, fingerprints and what UniProt's headers say, in one pass over the text.
//
// It takes ordinary texts: where a record is at fault or needs thought (lower case, gaps, stops, blanks among residues,
// bytes beyond ASCII), the whole text is left to data/fasta.py, which this is tested against.

#include <cstdint>
#include <cstring>
#include <initializer_list>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define XXH_INLINE_ALL
#include "arrow/vendored/xxhash.h"  // comes with pyarrow

namespace {

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
};

struct Row {  // as in duplicates.py
    uint64_t key, check;
    int64_t record;
};

enum Flags : Byte { FRAGMENT = 1, REVIEWED = 2, UNREVIEWED = 4 };  // as in records.py

bool is_blank(Byte byte) { return byte <= ' '; }

const Byte* find(const Byte* from, const Byte* end, Byte byte) {
    return static_cast<const Byte*>(std::memchr(from, byte, end - from));
}

uint64_t mix(uint64_t value) {  // as in hashing.py
    value += 0x9E3779B97F4A7C15u;
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
    return value ^ (value >> 31);
}

uint64_t hash(Span letters) {
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

struct Header {
    Span line, id;
    int32_t taxon_id = 0, cluster_size = 0;
    Byte protein_existence = 0, flags = 0;

    // False: it has no identifier, or is not ASCII.
    bool read() {
        Byte bits = 0;
        for (const Byte* place = line.start; place < line.end; ++place) bits |= *place;
        Span word{line.start, line.end};
        while (word.start < line.end && is_blank(*word.start)) ++word.start;
        if (bits >= 0x80 || word.start == line.end) return false;
        for (word.end = word.start; word.end < line.end && !is_blank(*word.end);) ++word.end;
        id = word;
        bool is_knowledgebase = false;
        if (word.begins("sp|") || word.begins("tr|")) {
            const Span rest{word.start + 3, word.end};
            const Byte* bar = find(rest.start, rest.end, '|');
            const Span accession{rest.start, bar ? bar : rest.end};
            if ((is_knowledgebase = accession.start < accession.end)) id = accession;
        }
        const Byte* name_end = line.end;
        if (is_knowledgebase) {
            flags = *word.start == 's' ? REVIEWED : UNREVIEWED;
            read_knowledgebase(name_end);
        } else if (is_cluster(word)) {
            read_cluster(name_end);
        }
        Span name{line.start, name_end};
        while (name.end > name.start && is_blank(name.end[-1])) --name.end;
        if (name.ends("(Fragment)") || name.ends("(Fragments)")) flags |= FRAGMENT;
        return true;
    }

private:
    static bool is_cluster(Span word) {
        for (const char* name : {"UniRef50_", "UniRef90_", "UniRef100_"})
            if (word.begins(name) && word.end - word.start > int64_t(std::strlen(name))) return true;
        return false;
    }

    // Where ` KEY` before an equals sign begins, at its blank; null: it does not stand there.
    const Byte* key(const Byte* equals, const char* name) const {
        const int64_t length = std::strlen(name);
        const Byte* start = equals - length - 1;
        return start >= line.start && is_blank(*start) && !std::memcmp(start + 1, name, length) ? start : nullptr;
    }

    // A number below 2^31 of up to ten digits, up to a blank or the end.
    bool number(const Byte* equals, int64_t& value) const {
        const Byte* place = equals + 1;
        value = 0;
        for (; place < line.end && place - equals <= 10 && *place >= '0' && *place <= '9'; ++place)
            value = 10 * value + (*place - '0');
        const bool is_whole = place == line.end || is_blank(*place);
        return place > equals + 1 && is_whole && value < int64_t{1} << 31;
    }

    void read_knowledgebase(const Byte*& name_end) {
        int64_t value;
        bool has_organism = false;
        for (const Byte* place = line.start; (place = find(place, line.end, '=')); ++place) {
            if (key(place, "OX")) {
                if (number(place, value)) taxon_id = value;
            } else if (key(place, "PE")) {
                if (number(place, value)) protein_existence = value;
            } else if (const Byte* start = key(place, "OS"); start && !has_organism) {
                name_end = start, has_organism = true;
            }
        }
    }

    void read_cluster(const Byte*& name_end) {
        int64_t value;
        for (const Byte* place = line.start; (place = find(place, line.end, '=')); ++place) {
            if (key(place, "TaxID")) {
                if (number(place, value)) taxon_id = value;
            } else if (const Byte* start = key(place, "n"); start && number(place, value)) {
                cluster_size = value, name_end = start;
            }
        }
    }
};

// The residues of one record, from the line behind its heading on; false: there are none, or not only residues. `last` is the
// largest code of a residue, `width` that of the line before, which most lines share.
bool read_residues(const Codes& codes, Byte last, const Byte* end, int64_t& width, const Byte*& place, Byte*& to, Byte& largest) {
    const Byte* begin = to;
    largest = 0;
    while (place < end && *place != '>') {
        if (width < end - place && place[width] == '\n') {
            const Byte code = codes.write(place, width, to);
            if (code <= last) {  // no line feed among them
                largest = code > largest ? code : largest;
                to += width, place += width + 1;
                continue;
            }
        }
        const int64_t length = find(place, end, '\n') - place;
        const Byte code = codes.write(place, length, to);
        if (code > last) return false;
        largest = code > largest ? code : largest;
        to += length, place += length + 1;
        if (place < end && *place != '>') width = length;
    }
    return to > begin;
}

void settle_ambiguous(Call& call, Byte* from, Byte* to) {
    for (; from < to; ++from) {
        if (*from < call.first_ambiguous) continue;
        call.num_j += *from == call.j;
        call.num_bouz += *from > call.x && *from < call.j;
        if (call.all_to_x || *from == call.j) *from = call.x;
    }
}

}  // namespace

extern "C" {

int64_t protein_lm_fasta_call_bytes() { return sizeof(Call); }

// How often each of two bytes is there.
void protein_lm_count(const Byte* text, int64_t size, int32_t first, int32_t second, int64_t* totals) {
    totals[0] = totals[1] = 0;
    while (size > 0) {  // in pieces whose counts fit a byte for each of 64 lanes
        const int64_t piece = size < 64 * 255 ? size : 64 * 255;
        Byte counts[2][64] = {};
        int64_t place = 0;
        for (; place + 64 <= piece; place += 64) {
            for (int lane = 0; lane < 64; ++lane) {
                counts[0][lane] += text[place + lane] == Byte(first);
                counts[1][lane] += text[place + lane] == Byte(second);
            }
        }
        for (int lane = 0; lane < 64; ++lane) totals[0] += counts[0][lane], totals[1] += counts[1][lane];
        for (; place < piece; ++place) totals[0] += text[place] == Byte(first), totals[1] += text[place] == Byte(second);
        text += piece, size -= piece;
    }
}

// Pieces of bytes to keep, moved together, of pieces of `lengths` (number) back to back. Returns the bytes kept.
int64_t protein_lm_keep(const Byte* from, const int64_t* lengths, const Byte* keep, int64_t number, Byte* to) {
    Byte* const begin = to;
    for (int64_t piece = 0; piece < number; ++piece) {
        int64_t size = 0;  // of a run of pieces
        for (; piece < number && keep[piece]; ++piece) size += lengths[piece];
        std::memcpy(to, from, size);
        to += size, from += size;
        if (piece < number) from += lengths[piece];
    }
    return to - begin;
}

// Values to keep of each of some columns (number values of `bytes[column]` each); `places` (number) is scratch.
void protein_lm_select(const Byte* const* from, Byte* const* to, const int64_t* bytes, int64_t columns, const Byte* keep,
                       int64_t number, int32_t* places) {
    int64_t count = 0;
    for (int64_t value = 0; value < number; ++value) {
        places[count] = int32_t(value);
        count += keep[value] != 0;
    }
    const auto gather = [&](const Byte* values, Byte* kept, auto value) {
        for (int64_t place = 0; place < count; ++place)
            std::memcpy(kept + place * sizeof value, values + places[place] * sizeof value, sizeof value);
    };
    struct Pair {
        uint64_t values[2];
    };
    for (int64_t column = 0; column < columns; ++column) {
        if (bytes[column] == 1) gather(from[column], to[column], Byte{});
        if (bytes[column] == 4) gather(from[column], to[column], uint32_t{});
        if (bytes[column] == 8) gather(from[column], to[column], uint64_t{});
        if (bytes[column] == 16) gather(from[column], to[column], Pair{});
    }
}

// Splits by hash, as in split.py: 0, or where the hash is small 1 or 2.
void protein_lm_split(const uint64_t* hashes, int64_t number, uint64_t seed, double most_of_1, double most_of_2, Byte* splits) {
    for (int64_t place = 0; place < number; ++place) {
        const double uniform = double(mix(hashes[place] ^ seed) >> 11) * 0x1p-53;
        splits[place] = uniform < most_of_2 ? 2 : uniform < most_of_1;
    }
}

// Notes fingerprints (number, 2) in a hash table (size slots) whose free slots are 0, and says which were not there. Their
// first halves say where, their second halves are what is kept. Each has some places in a row: one that finds them taken takes
// the place of another. Returns how many were lost so.
int64_t protein_lm_see(const uint64_t* prints, int64_t number, uint64_t* slots, int64_t size, int64_t places, Byte* is_new) {
    constexpr int64_t AHEAD = 16;
    const auto place_of = [&](int64_t print) { return int64_t((unsigned __int128)(prints[2 * print]) * uint64_t(size) >> 64); };
    int64_t num_lost = 0;
    for (int64_t print = 0; print < number; ++print) {
        if (print + AHEAD < number) __builtin_prefetch(slots + place_of(print + AHEAD), 1);
        const uint64_t kept = prints[2 * print + 1];
        if (!kept) {  // as a free slot
            is_new[print] = 1, ++num_lost;
            continue;
        }
        const int64_t start = place_of(print);
        uint64_t* slot = nullptr;
        for (int64_t place = start; place < start + places && !slot; ++place) {
            uint64_t* const here = slots + (place < size ? place : place - size);
            if (*here == kept || !*here) slot = here;
        }
        num_lost += !slot;
        if (!slot) slot = slots + (start + int64_t(kept % uint64_t(places))) % size;
        is_new[print] = *slot != kept;
        *slot = kept;
    }
    return num_lost;
}

// Rows of a ledger, sorted by the first bits of their keys: `ends` (2^bits) are where those of each number of bits end.
void protein_lm_spread(const Row* rows, int64_t number, int32_t bits, Row* to, int64_t* ends) {
    const int64_t size = int64_t{1} << bits;
    std::memset(ends, 0, size * sizeof(int64_t));
    for (int64_t row = 0; row < number; ++row) ++ends[rows[row].key >> (64 - bits)];
    int64_t begin = 0;
    for (int64_t place = 0; place < size; ++place) {
        const int64_t count = ends[place];
        ends[place] = begin;
        begin += count;
    }
    for (int64_t row = 0; row < number; ++row) to[ends[rows[row].key >> (64 - bits)]++] = rows[row];
}

// The number of records; -1: the text is not ordinary.
int64_t protein_lm_read_fasta(Call* call) {
    static const Codes codes(call->codes, call->j);  // they are the same in every call
    Byte *tokens = call->tokens, *ids = call->ids;
    int64_t record = 0, width = 60;
    call->num_j = call->num_bouz = 0;
    for (const Span text : {Span{call->head, call->head + call->head_size}, Span{call->body, call->body + call->body_size}}) {
        const Byte *place = text.start, *end = text.end;
        if (place < end && end[-1] != '\n') return -1;
        for (; place < end; ++record) {
            if (*place != '>' || record == call->capacity) return -1;
            const Byte* line_end = find(place, end, '\n');
            Header header{{place + 1, line_end}, {}};
            if (!header.read()) return -1;
            Byte *begin = tokens, largest;
            place = line_end + 1;
            if (!read_residues(codes, Byte(call->j), end, width, place, tokens, largest)) return -1;
            if ((call->has_ambiguous[record] = largest >= call->first_ambiguous)) settle_ambiguous(*call, begin, tokens);
            const XXH128_hash_t fingerprint = XXH3_128bits(begin, tokens - begin);
            call->fingerprints[2 * record] = fingerprint.high64;
            call->fingerprints[2 * record + 1] = fingerprint.low64;
            call->lengths[record] = tokens - begin;
            call->id_lengths[record] = header.id.end - header.id.start;
            call->id_hashes[record] = hash(header.id);
            std::memcpy(ids, header.id.start, call->id_lengths[record]);
            ids += call->id_lengths[record];
            call->taxon_ids[record] = header.taxon_id;
            call->cluster_sizes[record] = header.cluster_size;
            call->protein_existence[record] = header.protein_existence;
            call->flags[record] = header.flags;
        }
    }
    call->num_tokens = tokens - call->tokens;
    call->num_id_bytes = ids - call->ids;
    return record;
}
}
