/* Sums of products of few-bit integers by population counts. Compiled on demand; see library.py.
 * Rows are bit planes: [row][plane][tap][word], 64 channels a word, unused bits 0. */
#include <stdint.h>
#include <string.h>
#ifdef HAQ_AVX2
#include <immintrin.h>
#endif

enum { XNOR = 0, TERNARY = 1, SERIAL = 2 };

int haq_supports(int path) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (path == 1) return __builtin_cpu_supports("popcnt") != 0;
    if (path == 2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt");
#endif
    return path == 0;
}

static int bit_of(int value, int form, int plane) {
    if (form == XNOR) return value > 0;
    if (form == TERNARY) return plane == 0 ? value != 0 : value < 0;
    return (value >> plane) & 1;
}

/* x [n][channels][pixels] to out [n][planes][pixels][words]; out is zero before. */
void haq_pack(const int8_t *x, int64_t n, int64_t channels, int64_t pixels, int form, int planes, uint64_t *out) {
    const int64_t words = (channels + 63) / 64;
    for (int64_t i = 0; i < n; i++)
        for (int plane = 0; plane < planes; plane++, out += pixels * words)
            for (int64_t c = 0; c < channels; c++) {
                const int8_t *from = x + (i * channels + c) * pixels;
                for (int64_t p = 0; p < pixels; p++)
                    out[p * words + c / 64] |= (uint64_t)bit_of(from[p], form, plane) << (c % 64);
            }
}

#ifdef HAQ_AVX2
/* Muła's count: a table of nibbles by shuffle, bytes summed to four 64-bit counts. */
static inline __m256i counted(__m256i v) {
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
                                           0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i low = _mm256_set1_epi8(15);
    const __m256i bytes = _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(v, low)),
        _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), low)));
    return _mm256_sad_epu8(bytes, _mm256_setzero_si256());
}

static inline int64_t total(__m256i v) {
    return _mm256_extract_epi64(v, 0) + _mm256_extract_epi64(v, 1) + _mm256_extract_epi64(v, 2) + _mm256_extract_epi64(v, 3);
}
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#endif

#define POP(v) ((int64_t)__builtin_popcountll(v))

/* Counts of one row against four, `gap` words apart: sum[j] += count(a OP w_j). */
#define COUNT4(NAME, OP, VOP)                                                                                      \
    static void NAME(const uint64_t *a, const uint64_t *w, int64_t gap, int64_t k, int64_t sum[4]) {              \
        const uint64_t *w1 = w + gap, *w2 = w1 + gap, *w3 = w2 + gap;                                              \
        int64_t s0 = 0, s1 = 0, s2 = 0, s3 = 0, i = 0;                                                             \
        VECTOR4(VOP)                                                                                               \
        for (; i < k; i++) {                                                                                       \
            s0 += POP(a[i] OP w[i]), s1 += POP(a[i] OP w1[i]), s2 += POP(a[i] OP w2[i]), s3 += POP(a[i] OP w3[i]); \
        }                                                                                                          \
        sum[0] = s0, sum[1] = s1, sum[2] = s2, sum[3] = s3;                                                        \
    }
#ifdef HAQ_AVX2
#define VECTOR4(VOP)                                                                                               \
    if (k >= 4) {                                                                                                  \
        __m256i t0 = _mm256_setzero_si256(), t1 = t0, t2 = t0, t3 = t0;                                            \
        for (; i + 4 <= k; i += 4) {                                                                               \
            const __m256i v = LOAD(a + i);                                                                         \
            t0 = _mm256_add_epi64(t0, counted(VOP(v, LOAD(w + i))));                                               \
            t1 = _mm256_add_epi64(t1, counted(VOP(v, LOAD(w1 + i))));                                              \
            t2 = _mm256_add_epi64(t2, counted(VOP(v, LOAD(w2 + i))));                                              \
            t3 = _mm256_add_epi64(t3, counted(VOP(v, LOAD(w3 + i))));                                              \
        }                                                                                                          \
        s0 = total(t0), s1 = total(t1), s2 = total(t2), s3 = total(t3);                                            \
    }
#else
#define VECTOR4(VOP)
#endif
COUNT4(count_xor, ^, _mm256_xor_si256)
COUNT4(count_and, &, _mm256_and_si256)

/* Products of {-1, 0, 1}: both not 0, less twice those whose signs differ. */
static int64_t ternary(const uint64_t *a, const uint64_t *w, int64_t k) {
    int64_t both = 0, differ = 0, i = 0;
#ifdef HAQ_AVX2
    __m256i t = _mm256_setzero_si256(), d = t;
    for (; i + 4 <= k; i += 4) {
        const __m256i m = _mm256_and_si256(LOAD(a + i), LOAD(w + i));
        t = _mm256_add_epi64(t, counted(m));
        d = _mm256_add_epi64(d, counted(_mm256_and_si256(m, _mm256_xor_si256(LOAD(a + k + i), LOAD(w + k + i)))));
    }
    both = total(t), differ = total(d);
#endif
    for (; i < k; i++) {
        const uint64_t m = a[i] & w[i];
        both += POP(m), differ += POP(m & (a[k + i] ^ w[k + i]));
    }
    return both - 2 * differ;
}

static int64_t weight_of(int plane, int planes, int is_signed) {
    return is_signed && plane == planes - 1 ? -((int64_t)1 << plane) : (int64_t)1 << plane;
}

/* Four outputs of one row; `terms` is the number of products of a row. */
static void four(const uint64_t *a, const uint64_t *w, int64_t gap, int64_t k, int form, int pa, int pw, int signed_a,
                 int64_t terms, int64_t sum[4]) {
    if (form == XNOR) {
        count_xor(a, w, gap, k, sum);
        for (int j = 0; j < 4; j++) sum[j] = terms - 2 * sum[j];
    } else if (form == TERNARY) {
        for (int j = 0; j < 4; j++) sum[j] = ternary(a, w + j * gap, k);
    } else {
        int64_t part[4];
        memset(sum, 0, 4 * sizeof *sum);
        for (int p = 0; p < pa; p++)
            for (int q = 0; q < pw; q++) {
                const int64_t factor = weight_of(p, pa, signed_a) * weight_of(q, pw, 1);
                count_and(a + p * k, w + q * k, gap, k, part);
                for (int j = 0; j < 4; j++) sum[j] += factor * part[j];
            }
    }
}

/* size: n, words, channels, height, width, rows, out height, out width, kernel y, x, stride y, x, top, left,
 * dilation y, x. x [n][pa][height * width][words], w [rows rounded up to 4][pw][taps][words], tap_sums [rows][taps]
 * (sum of the weights of a tap; a tap in the padding adds 0, which binary rows have no code for), row: room for one
 * row, out [n][out height][out width][rows]. */
void haq_conv(const uint64_t *x, const uint64_t *w, const int32_t *tap_sums, const int64_t *size, int form, int pa, int pw,
              int signed_a, uint64_t *row, int32_t *out) {
    const int64_t words = size[1], height = size[3], width = size[4], rows = size[5], taps = size[8] * size[9];
    const int64_t k = taps * words, gap = pw * k, terms = taps * size[2];
    for (int64_t i = 0; i < size[0]; i++, x += pa * height * width * words)
        for (int64_t oy = 0; oy < size[6]; oy++)
            for (int64_t ox = 0; ox < size[7]; ox++, out += rows) {
                int outside = 0;
                for (int p = 0; p < pa; p++)
                    for (int64_t t = 0; t < taps; t++) {
                        const int64_t y = oy * size[10] - size[12] + t / size[9] * size[14];
                        const int64_t z = ox * size[11] - size[13] + t % size[9] * size[15];
                        uint64_t *to = row + (p * taps + t) * words;
                        if (y < 0 || y >= height || z < 0 || z >= width) {
                            memset(to, 0, words * sizeof *to);
                            outside = 1;
                        } else
                            memcpy(to, x + ((p * height + y) * width + z) * words, words * sizeof *to);
                    }
                for (int64_t r = 0; r < rows; r += 4) {
                    int64_t sum[4];
                    four(row, w + r * gap, gap, k, form, pa, pw, signed_a, terms, sum);
                    for (int64_t j = 0; j < 4 && r + j < rows; j++) out[r + j] = (int32_t)sum[j];
                }
                if (form != XNOR || !outside) continue;
                for (int64_t t = 0; t < taps; t++) {
                    const int64_t y = oy * size[10] - size[12] + t / size[9] * size[14];
                    const int64_t z = ox * size[11] - size[13] + t % size[9] * size[15];
                    if (y < 0 || y >= height || z < 0 || z >= width)
                        for (int64_t r = 0; r < rows; r++) out[r] += tap_sums[r * taps + t];
                }
            }
}

/* The attainable rate: one row of 512 words against four, all in the first cache; 2048 words a repeat. */
int64_t haq_probe(const uint64_t *a, const uint64_t *w, int64_t repeats) {
    int64_t all = 0, sum[4];
    for (int64_t i = 0; i < repeats; i++) {
        count_xor(a, w, 512, 512, sum);
        all += sum[i & 3];
    }
    return all;
}
