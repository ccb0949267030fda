// What is done to columns of records: counted, chosen, split, looked up and sorted.

#include "reading.h"

namespace {

using reading::Byte;

struct Row {  // as in duplicates.py
    uint64_t key, check;
    int64_t record;
};

}  // namespace

extern "C" {

int64_t protein_lm_call_bytes() { return sizeof(reading::Call); }

// How often a byte is there.
int64_t protein_lm_count(const Byte* text, int64_t size, int32_t byte) {
    int64_t total = 0;
    while (size > 0) {  // in pieces whose counts fit a byte for each of 64 lanes
        const int64_t piece = size < 64 * 255 ? size : 64 * 255;
        Byte counts[64] = {};
        int64_t place = 0;
        for (; place + 64 <= piece; place += 64)
            for (int lane = 0; lane < 64; ++lane) counts[lane] += text[place + lane] == Byte(byte);
        for (int lane = 0; lane < 64; ++lane) total += counts[lane];
        for (; place < piece; ++place) total += text[place] == Byte(byte);
        text += piece, size -= piece;
    }
    return total;
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

// Splits by hash, as in numpy_reader.py: 0, or where the hash is small 1 or 2.
void protein_lm_split(const uint64_t* hashes, int64_t number, uint64_t seed, double most_of_1, double most_of_2, Byte* splits) {
    for (int64_t place = 0; place < number; ++place) {
        const double uniform = double(reading::mix(hashes[place] ^ seed) >> 11) * 0x1p-53;
        splits[place] = uniform < most_of_2 ? 2 : uniform < most_of_1;
    }
}

// Adds up records and their residues by split: `totals` (2, num_splits).
void protein_lm_tally(const Byte* splits, const int64_t* lengths, int64_t number, int64_t num_splits, int64_t* totals) {
    std::memset(totals, 0, 2 * num_splits * sizeof(int64_t));
    for (int64_t place = 0; place < number; ++place) {
        ++totals[splits[place]];
        totals[num_splits + splits[place]] += lengths[place];
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
}
