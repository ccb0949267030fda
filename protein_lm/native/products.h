// Products of small matrices: types of operands, tiles, panels, and the memory of a thread.

#pragma once

#include <type_traits>

#include "vectors.h"

constexpr int ALIGNMENT = 32;  // what widths and tokens are padded to
constexpr int GAP = 16;                        // numbers behind a row: rows at powers of two would evict each other

// Types of operands. A unit is what a product takes of one row at a time: 32 bits.
struct Float32 {
    using Number = float;
    static constexpr int PAIR = 1;
    static ALWAYS Vector multiply_add(Vector sum, uint32_t left, Words right) {
        float value;
        std::memcpy(&value, &left, 4);
        return sum + value * (Vector)right;
    }
    static ALWAYS Vector as_stored(Vector values) { return values; }
    // Rows of a tile from row `row` on, as a panel's.
    static ALWAYS void store_panel(float* strip, int row, const Vector (&tile)[TALL][WIDE]) {
        for (int r = 0; r < TALL; ++r)
            for (int v = 0; v < WIDE; ++v) store(strip + (row + r) * STRIP + v * LANES, tile[r][v]);
    }
    static ALWAYS Vector panel_row(const float* strip, int row, int v) { return load(strip + row * STRIP + v * LANES); }
};
#if defined(__AVX512BF16__)
struct BFloat16 {
    using Number = Half;
    static constexpr int PAIR = 2;
    static ALWAYS Vector multiply_add(Vector sum, uint32_t left, Words right) {
        return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)left), (__m512bh)right);
    }
    static ALWAYS Vector as_stored(Vector values) {
        return (Vector)(__builtin_convertvector(rounded(values), Words) << 16);
    }
    static ALWAYS void store_panel(Half* strip, int row, const Vector (&tile)[TALL][WIDE]) {
        for (int r = 0; r < TALL; r += 2)
            for (int v = 0; v < WIDE; ++v) {
                const Words first = __builtin_convertvector(rounded(tile[r][v]), Words);
                const Words second = __builtin_convertvector(rounded(tile[r + 1][v]), Words);
                *(LooseWords*)(strip + (row + r) * STRIP + v * LANES * 2) = first | (second << 16);
            }
    }
    static ALWAYS Vector panel_row(const Half* strip, int row, int v) {
        const Words pairs = *(const LooseWords*)(strip + (row & ~1) * STRIP + v * LANES * 2);
        return (Vector)(row & 1 ? pairs & 0xffff0000u : pairs << 16);
    }
};
#endif

// sums += left x right for TALL rows of `left` and one strip of `right`.
template <class Type, class Number>
static ALWAYS void accumulate(Vector (&sums)[TALL][WIDE], const Number* left, int left_stride, const Number* strip, int depth) {
    for (int first = 0; first < TALL; first += AT_ONCE) {
        Vector part[AT_ONCE][WIDE];
        for (int r = 0; r < AT_ONCE; ++r)
            for (int v = 0; v < WIDE; ++v) part[r][v] = sums[first + r][v];
        for (int k = 0; k < depth; k += Type::PAIR) {
            Words right[WIDE];
            for (int v = 0; v < WIDE; ++v) right[v] = *(const LooseWords*)(strip + k * STRIP + v * LANES * Type::PAIR);
            for (int r = 0; r < AT_ONCE; ++r) {
                const uint32_t value = *(const Word*)(left + (long)(first + r) * left_stride + k);
                for (int v = 0; v < WIDE; ++v) part[r][v] = Type::multiply_add(part[r][v], value, right[v]);
            }
        }
        for (int r = 0; r < AT_ONCE; ++r)
            for (int v = 0; v < WIDE; ++v) sums[first + r][v] = part[r][v];
    }
}

// sums += left x right in float32 for some rows of `left`, `row` numbers apart and their columns `step`, and one strip of `right`.
template <int ROWS>
static ALWAYS void accumulate_strided(Vector (&sums)[ROWS][WIDE], const float* left, long row, long step, const float* strip, int depth) {
    Vector part[ROWS][WIDE];
    std::memcpy(part, sums, sizeof(part));
    for (int k = 0; k < depth; ++k) {
        Vector right[WIDE];
        for (int v = 0; v < WIDE; ++v) right[v] = load(strip + k * STRIP + v * LANES);
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < WIDE; ++v) part[r][v] += left[r * row + k * step] * right[v];
    }
    std::memcpy(sums, part, sizeof(part));
}

#if defined(HAS_TILES)
struct TileShapes {  // of all eight tiles: 16 rows of 64 bytes
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
#if defined(PROTEIN_LM_EMULATED_TILES)
static thread_local uint8_t emulated_tiles[8][16][64];
static void begin_tiles() {}
static void end_tiles() {}
template <int TILE>
static void tile_load(const void* from, long stride) {
    for (int row = 0; row < 16; ++row) std::memcpy(emulated_tiles[TILE][row], (const char*)from + row * stride, 64);
}
template <int TILE>
static void tile_store(void* to, long stride) {
    for (int row = 0; row < 16; ++row) std::memcpy((char*)to + row * stride, emulated_tiles[TILE][row], 64);
}
template <int SUMS, int LEFT, int RIGHT>
static void tile_product() {  // as the instruction's reference has it
    float(*sums)[16] = (float(*)[16])emulated_tiles[SUMS];
    const Half(*left)[32] = (const Half(*)[32])emulated_tiles[LEFT];
    const Half(*right)[32] = (const Half(*)[32])emulated_tiles[RIGHT];
    for (int row = 0; row < 16; ++row)
        for (int k = 0; k < 16; ++k)
            for (int column = 0; column < 16; ++column)
                for (int p = 0; p < 2; ++p)
                    sums[row][column] += number(left[row][2 * k + p]) * number(right[k][2 * column + p]);
}
#else
static void begin_tiles() {
    const TileShapes shapes;
    _tile_loadconfig(&shapes);
}
static void end_tiles() { _tile_release(); }
#define TILE_FUNCTIONS(TILE)                                                                                  \
    template <>                                                                                               \
    ALWAYS void tile_load<TILE>(const void* from, long stride) { _tile_loadd(TILE, from, stride); }           \
    template <>                                                                                               \
    ALWAYS void tile_store<TILE>(void* to, long stride) { _tile_stored(TILE, to, stride); }
#define TILE_PRODUCT(SUMS, LEFT, RIGHT)                                                                       \
    template <>                                                                                               \
    ALWAYS void tile_product<SUMS, LEFT, RIGHT>() { _tile_dpbf16ps(SUMS, LEFT, RIGHT); }
template <int TILE> void tile_load(const void* from, long stride);
template <int TILE> void tile_store(void* to, long stride);
template <int SUMS, int LEFT, int RIGHT> void tile_product();
TILE_FUNCTIONS(0)
TILE_FUNCTIONS(1)
TILE_FUNCTIONS(2)
TILE_FUNCTIONS(3)
TILE_FUNCTIONS(4)
TILE_FUNCTIONS(5)
TILE_FUNCTIONS(6)
TILE_FUNCTIONS(7)
TILE_PRODUCT(0, 4, 6)
TILE_PRODUCT(1, 4, 7)
TILE_PRODUCT(2, 5, 6)
TILE_PRODUCT(3, 5, 7)
#endif
// 32 rows by 32 columns: two tiles of rows times two of columns. The depth is a multiple of 32.
template <>
ALWAYS void accumulate<BFloat16, Half>(Vector (&sums)[TALL][WIDE], const Half* left, int left_stride, const Half* strip, int depth) {
    constexpr long SUMS_STRIDE = WIDE * sizeof(Vector), STRIP_STRIDE = STRIP * BFloat16::PAIR * sizeof(Half);
    char* tiles = (char*)&sums[0][0];
    tile_load<0>(tiles, SUMS_STRIDE);
    tile_load<1>(tiles + sizeof(Vector), SUMS_STRIDE);
    tile_load<2>(tiles + 16 * SUMS_STRIDE, SUMS_STRIDE);
    tile_load<3>(tiles + 16 * SUMS_STRIDE + sizeof(Vector), SUMS_STRIDE);
    for (int k = 0; k < depth; k += 32) {
        tile_load<4>(left + k, left_stride * (long)sizeof(Half));
        tile_load<5>(left + 16L * left_stride + k, left_stride * (long)sizeof(Half));
        tile_load<6>(strip + k * STRIP, STRIP_STRIDE);
        tile_load<7>(strip + k * STRIP + LANES * BFloat16::PAIR, STRIP_STRIDE);
        tile_product<0, 4, 6>();
        tile_product<1, 4, 7>();
        tile_product<2, 5, 6>();
        tile_product<3, 5, 7>();
    }
    tile_store<0>(tiles, SUMS_STRIDE);
    tile_store<1>(tiles + sizeof(Vector), SUMS_STRIDE);
    tile_store<2>(tiles + 16 * SUMS_STRIDE, SUMS_STRIDE);
    tile_store<3>(tiles + 16 * SUMS_STRIDE + sizeof(Vector), SUMS_STRIDE);
}
#else
static void begin_tiles() {}
static void end_tiles() {}
#endif

// Calls `body(row, column, sums)` for the tiles of a matrix, strip by strip.
template <class Body>
static ALWAYS void for_tiles(int rows, int columns, Body body) {
    for (int column = 0; column < columns; column += STRIP)
        for (int row = 0; row < rows; row += TALL) {
            Vector sums[TALL][WIDE] = {};
            body(row, column, sums);
        }
}

// Rows (rows x depth) as a panel of depth `rows`.
template <class Type, class Number>
static void to_panel(const Number* from, int stride, int rows, int columns, Number* panel) {
    for (int column = 0; column < columns; column += STRIP)
        for (int row = 0; row < rows; row += Type::PAIR) {
            Number* to = panel + (long)column * rows + row * STRIP;
            const Number* source = from + (long)row * stride + column;
            for (int c = 0; c < STRIP; c += LANES) {
                if constexpr (Type::PAIR == 1) {
                    store(to + c, load(source + c));
                } else {
                    const Words first = __builtin_convertvector(*(const LooseHalves*)(source + c), Words);
                    const Words second = __builtin_convertvector(*(const LooseHalves*)(source + stride + c), Words);
                    *(LooseWords*)(to + c * 2) = first | (second << 16);
                }
            }
        }
}

#if defined(__AVX__)
constexpr int SQUARE = 8;
// to = from^T, of SQUARE x SQUARE words; strides in words.
static ALWAYS void transpose_square(const Word* from, long stride, Word* to, long to_stride) {
    __m256 rows[8], pairs[8], fours[8];
    for (int r = 0; r < 8; ++r) rows[r] = _mm256_loadu_ps((const float*)(from + r * stride));
    for (int r = 0; r < 8; r += 2) {
        pairs[r] = _mm256_unpacklo_ps(rows[r], rows[r + 1]);
        pairs[r + 1] = _mm256_unpackhi_ps(rows[r], rows[r + 1]);
    }
    for (int r = 0; r < 8; r += 4)
        for (int half = 0; half < 2; ++half) {
            fours[r + 2 * half] = _mm256_shuffle_ps(pairs[r + half], pairs[r + 2 + half], 0x44);
            fours[r + 2 * half + 1] = _mm256_shuffle_ps(pairs[r + half], pairs[r + 2 + half], 0xee);
        }
    for (int r = 0; r < 4; ++r) {
        _mm256_storeu_ps((float*)(to + r * to_stride), _mm256_permute2f128_ps(fours[r], fours[r + 4], 0x20));
        _mm256_storeu_ps((float*)(to + (r + 4) * to_stride), _mm256_permute2f128_ps(fours[r], fours[r + 4], 0x31));
    }
}
#else
constexpr int SQUARE = 1;
static ALWAYS void transpose_square(const Word* from, long, Word* to, long) { *to = *from; }
#endif

// Rows (rows x depth), transposed, as a panel of depth `depth` with `rows` columns. A word is what a product takes at a time.
template <class Type, class Number>
static void to_transposed_panel(const Number* from, int stride, int rows, int depth, Number* panel) {
    for (int row = 0; row < rows; row += SQUARE) {
        Number* to = panel + (long)(row / STRIP) * STRIP * depth + (row % STRIP) * Type::PAIR;
        for (int k = 0; k < depth; k += SQUARE * Type::PAIR)
            transpose_square((const Word*)(from + (long)row * stride + k), stride / Type::PAIR, (Word*)(to + k * STRIP), STRIP);
    }
}

// Tokens of a tensor as operands (rows x padded width, with a gap behind each row), zeros where there are none.
template <class To, class Input>
static void read_operands(const Input* from, int64_t stride, int tokens, int rows, int width, int padded_width, To* to) {
    for (int r = 0; r < rows; ++r, from += stride, to += padded_width + GAP) {
        int c = 0;
        if (r < tokens && std::is_same<To, Input>::value) {
            std::memcpy((void*)to, (const void*)from, sizeof(To) * width);
            c = width;
        } else if (r < tokens) {
            for (; c + LANES <= width; c += LANES) store(to + c, load(from + c));
            for (; c < width; ++c) store(to + c, number(from[c]));
        }
        std::memset((void*)(to + c), 0, sizeof(To) * (padded_width + GAP - c));
    }
}

// A row of a tile to a tensor, as far as it reaches.
template <class Input>
static ALWAYS void write_row(Input* target, int column, int width, const Vector (&values)[WIDE]) {
    if (column + STRIP <= width) {
        for (int v = 0; v < WIDE; ++v) store(target + column + v * LANES, values[v]);
        return;
    }
    for (int c = column; c < std::min(width, column + STRIP); ++c)
        store(target + c, values[(c - column) / LANES][(c - column) % LANES]);
}

extern "C" struct Rows {  // a tensor (B, H, L, width), whose last axis is contiguous; strides in numbers
    void* data;
    int64_t batch, head, token;
};

static int padded_tall(int count) { return (count + TALL - 1) / TALL * TALL; }
static int padded(int64_t size) { return (int)((size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT); }

struct Arena {  // memory of a thread, kept from call to call
    char* memory = nullptr;
    size_t size = 0, used = 0;
    bool counts_only = true;
    ~Arena() { std::free(memory); }
    template <class Number>
    Number* take(size_t count) {
        size_t offset = used;
        used += (count * sizeof(Number) + 127) / 64 * 64;  // at least a line between two
        return counts_only ? nullptr : (Number*)(memory + offset);
    }
    bool reserve() {
        if (used > size) {
            std::free(memory);
            memory = (char*)std::aligned_alloc(64, used);
            size = memory ? used : 0;
        }
        used = 0;
        counts_only = false;
        return memory;
    }
};
