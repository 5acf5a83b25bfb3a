/* Integer operators for a network that haq generated: no allocation, no float, no library.
 *
 * A tensor is packed: 1, 2, 4 or 8 bits an element (its integer less the least of its format), or 16 bits (the integer
 * itself). Elements lie in the order of their index, the last one fastest.
 */
#ifndef HAQ_RUNTIME_H
#define HAQ_RUNTIME_H

#include <stdint.h>

#if defined(__ARM_FEATURE_DSP)
#include <arm_acle.h>
#endif

/* A kernel stays one function: with a copy for each call, what a layer takes would hang on what else is called. */
#if defined(__GNUC__) && !defined(__clang__)
#define HAQ_KERNEL static __attribute__((noinline, noclone))
#else
#define HAQ_KERNEL static
#endif

#define HAQ_DIMS 5
#define HAQ_TILE 4 /* output positions that share one unpacking of a row of weights */

typedef struct {
    uint8_t *data;
    int32_t bits;
    int32_t low; /* least integer; 0 where bits is 16 */
    int32_t zero;
} haq_tensor;

typedef struct {
    int32_t multiplier;
    int32_t exponent;
} haq_factor;

typedef struct {
    int32_t zero;
    int32_t low;
    int32_t high;
} haq_format;

/* Packed elements */

static inline int32_t haq_load_1(const uint8_t *data, int32_t i) { return (data[i >> 3] >> (i & 7)) & 1; }
static inline int32_t haq_load_2(const uint8_t *data, int32_t i) { return (data[i >> 2] >> (2 * (i & 3))) & 3; }
static inline int32_t haq_load_4(const uint8_t *data, int32_t i) { return (data[i >> 1] >> (4 * (i & 1))) & 15; }
static inline int32_t haq_load_8(const uint8_t *data, int32_t i) { return data[i]; }
static inline int32_t haq_load_16(const uint8_t *data, int32_t i) {
    const uint16_t both = (uint16_t)(data[2 * i] | (data[2 * i + 1] << 8));
    return (int16_t)both;
}

static inline void haq_store_1(uint8_t *data, int32_t i, int32_t value) {
    data[i >> 3] = (uint8_t)((data[i >> 3] & ~(1 << (i & 7))) | (value << (i & 7)));
}
static inline void haq_store_2(uint8_t *data, int32_t i, int32_t value) {
    const int32_t at = 2 * (i & 3);
    data[i >> 2] = (uint8_t)((data[i >> 2] & ~(3 << at)) | (value << at));
}
static inline void haq_store_4(uint8_t *data, int32_t i, int32_t value) {
    const int32_t at = 4 * (i & 1);
    data[i >> 1] = (uint8_t)((data[i >> 1] & ~(15 << at)) | (value << at));
}
static inline void haq_store_8(uint8_t *data, int32_t i, int32_t value) { data[i] = (uint8_t)value; }
static inline void haq_store_16(uint8_t *data, int32_t i, int32_t value) {
    data[2 * i] = (uint8_t)(value & 255);
    data[2 * i + 1] = (uint8_t)((value >> 8) & 255);
}

static inline int32_t haq_get(const haq_tensor *t, int32_t i) {
    switch (t->bits) {
    case 1: return haq_load_1(t->data, i) + t->low;
    case 2: return haq_load_2(t->data, i) + t->low;
    case 4: return haq_load_4(t->data, i) + t->low;
    case 8: return haq_load_8(t->data, i) + t->low;
    default: return haq_load_16(t->data, i);
    }
}

static inline void haq_put(const haq_tensor *t, int32_t i, int32_t value) {
    switch (t->bits) {
    case 1: haq_store_1(t->data, i, value - t->low); break;
    case 2: haq_store_2(t->data, i, value - t->low); break;
    case 4: haq_store_4(t->data, i, value - t->low); break;
    case 8: haq_store_8(t->data, i, value - t->low); break;
    default: haq_store_16(t->data, i, value); break;
    }
}

/* Rounding and rescaling */

static inline int64_t haq_divide(int64_t numerator, int64_t denominator) {
#if defined(HAQ_HALF_UP)
    int64_t quotient = numerator / denominator, rest = numerator % denominator;
    if (rest < 0) {
        quotient -= 1;
        rest += denominator;
    }
    return quotient + (2 * rest >= denominator);
#else
    const int64_t size = numerator < 0 ? -numerator : numerator;
    int64_t quotient = size / denominator;
    const int64_t rest = 2 * (size % denominator);
#if defined(HAQ_HALF_EVEN)
    quotient += rest > denominator || (rest == denominator && (quotient & 1));
#else
    quotient += rest >= denominator;
#endif
    return numerator < 0 ? -quotient : quotient;
#endif
}

static inline int32_t haq_rescale(int32_t value, haq_factor by) {
#if defined(HAQ_GEMMLOWP)
    const int32_t left = by.exponent > 0 ? by.exponent : 0, right = by.exponent > 0 ? 0 : -by.exponent;
    const int64_t product = (int64_t)value * ((int64_t)1 << left) * by.multiplier;
    const int64_t nudged = product + (product >= 0 ? (int64_t)1 << 30 : 1 - ((int64_t)1 << 30));
    const int64_t high = nudged / ((int64_t)1 << 31);
    const int64_t mask = ((int64_t)1 << right) - 1;
    return (int32_t)((high >> right) + ((high & mask) > (mask >> 1) + (high < 0)));
#else
    const int64_t product = (int64_t)value * by.multiplier;
    const int32_t right = 31 - by.exponent;
    const int64_t half = (int64_t)1 << (right - 1);
#if defined(HAQ_HALF_UP)
    return (int32_t)((product + half) >> right);
#else
    const int64_t size = product < 0 ? -product : product;
#if defined(HAQ_HALF_EVEN)
    int64_t quotient = size >> right;
    const int64_t rest = size - (quotient << right);
    quotient += rest > half || (rest == half && (quotient & 1));
#else
    const int64_t quotient = (size + half) >> right;
#endif
    return (int32_t)(product < 0 ? -quotient : quotient);
#endif
#endif
}

static inline int32_t haq_clamp(int32_t value, const haq_format *format) {
    return value < format->low ? format->low : value > format->high ? format->high : value;
}

static inline int32_t haq_requantize(int32_t value, haq_factor by, const haq_format *format) {
    return haq_clamp(haq_rescale(value, by) + format->zero, format);
}

/* Walks over up to five dimensions */

typedef struct {
    int32_t size[HAQ_DIMS];
    int32_t offset[3];            /* of the output and of each operand */
    int32_t stride[3][HAQ_DIMS];
} haq_walk;

static inline int32_t haq_count(const haq_walk *walk) {
    int32_t count = 1;
    for (int32_t d = 0; d < HAQ_DIMS; ++d) count *= walk->size[d];
    return count;
}

/* The places of the n-th step in the output and in both operands. */
static inline void haq_places(const haq_walk *walk, int32_t n, int32_t place[3]) {
    for (int32_t k = 0; k < 3; ++k) place[k] = walk->offset[k];
    for (int32_t d = HAQ_DIMS - 1; d >= 0; --d) {
        const int32_t index = n % walk->size[d];
        n /= walk->size[d];
        for (int32_t k = 0; k < 3; ++k) place[k] += index * walk->stride[k][d];
    }
}

enum haq_map { HAQ_COPY, HAQ_RESCALE, HAQ_SIGN, HAQ_TERNARY, HAQ_TABLE };

/* One operand: rescale, clamp, sign, ternary, table, and all that only moves elements. */
static inline void haq_map(const haq_walk *walk, enum haq_map how, const haq_tensor *in, const haq_tensor *out,
                           haq_factor by, const haq_format *format, const int16_t *table, int32_t parameter) {
    const int32_t count = haq_count(walk);
    for (int32_t n = 0; n < count; ++n) {
        int32_t place[3];
        haq_places(walk, n, place);
        const int32_t x = haq_get(in, place[1]);
        const int32_t d = x - in->zero;
        int32_t y = x;
        switch (how) {
        case HAQ_RESCALE: y = haq_requantize(d, by, format); break;
        case HAQ_SIGN: y = d >= 0 ? 1 : -1; break;
        case HAQ_TERNARY: y = (d > parameter) - (-d > parameter); break;
        case HAQ_TABLE: y = table[x - parameter]; break;
        default: y = haq_clamp(x, format); break;
        }
        haq_put(out, place[0], y);
    }
}

static inline void haq_fill(const haq_tensor *out, int32_t count, int32_t value) {
    for (int32_t i = 0; i < count; ++i) haq_put(out, i, value);
}

typedef struct {
    int32_t left; /* shift */
    int32_t sign[2];
    haq_factor in[2];
    haq_factor out;
} haq_add_parameters;

static inline void haq_add(const haq_walk *walk, const haq_tensor *a, const haq_tensor *b, const haq_tensor *out,
                           const haq_add_parameters *p, const haq_format *format) {
    const int32_t count = haq_count(walk);
    for (int32_t n = 0; n < count; ++n) {
        int32_t place[3];
        haq_places(walk, n, place);
        const int32_t x = (haq_get(a, place[1]) - a->zero) * (1 << p->left);
        const int32_t y = (haq_get(b, place[2]) - b->zero) * (1 << p->left);
        const int32_t sum = p->sign[0] * haq_rescale(x, p->in[0]) + p->sign[1] * haq_rescale(y, p->in[1]);
        haq_put(out, place[0], haq_requantize(sum, p->out, format));
    }
}

static inline void haq_multiply(const haq_walk *walk, const haq_tensor *a, const haq_tensor *b, const haq_tensor *out,
                                haq_factor by, const haq_format *format) {
    const int32_t count = haq_count(walk);
    for (int32_t n = 0; n < count; ++n) {
        int32_t place[3];
        haq_places(walk, n, place);
        const int32_t product = (haq_get(a, place[1]) - a->zero) * (haq_get(b, place[2]) - b->zero);
        haq_put(out, place[0], haq_requantize(product, by, format));
    }
}

/* Means: `outer` walks over what stays, `inner` over what is averaged (offsets and strides of operand 1). */
static inline void haq_mean(const haq_walk *outer, const haq_walk *inner, const haq_tensor *in, const haq_tensor *out,
                            haq_factor by, const haq_format *format) {
    const int32_t count = haq_count(outer), terms = haq_count(inner);
    for (int32_t n = 0; n < count; ++n) {
        int32_t place[3], beside[3], sum = 0;
        haq_places(outer, n, place);
        for (int32_t m = 0; m < terms; ++m) {
            haq_places(inner, m, beside);
            sum += haq_get(in, place[1] + beside[1]) - in->zero;
        }
        const int64_t mean = haq_divide((int64_t)sum * by.multiplier, (int64_t)terms << (31 - by.exponent));
        haq_put(out, place[0], haq_clamp((int32_t)mean + format->zero, format));
    }
}

/* Windows over two dimensions */

typedef struct {
    int32_t channels, height, width;           /* of the input */
    int32_t outputs, out_height, out_width;    /* of the output */
    int32_t kernel[2], stride[2], dilation[2]; /* rows, columns */
    int32_t top, left, groups;
} haq_window;

enum haq_pool { HAQ_MAX, HAQ_AVERAGE, HAQ_AVERAGE_INSIDE };

static inline void haq_pool(const haq_window *w, enum haq_pool how, const haq_tensor *in, const haq_tensor *out,
                            haq_factor by, const haq_format *format) {
    int32_t at = 0;
    for (int32_t c = 0; c < w->channels; ++c)
        for (int32_t row = 0; row < w->out_height; ++row)
            for (int32_t column = 0; column < w->out_width; ++column) {
                int32_t best = INT32_MIN, sum = 0, inside = 0;
                for (int32_t i = 0; i < w->kernel[0]; ++i)
                    for (int32_t j = 0; j < w->kernel[1]; ++j) {
                        const int32_t y = row * w->stride[0] - w->top + i * w->dilation[0];
                        const int32_t x = column * w->stride[1] - w->left + j * w->dilation[1];
                        if (y < 0 || y >= w->height || x < 0 || x >= w->width) continue;
                        const int32_t value = haq_get(in, (c * w->height + y) * w->width + x);
                        best = value > best ? value : best;
                        sum += value - in->zero;
                        ++inside;
                    }
                int32_t result = best;
                if (how != HAQ_MAX) {
                    const int32_t terms = how == HAQ_AVERAGE ? w->kernel[0] * w->kernel[1] : inside;
                    const int64_t share = (int64_t)terms << (31 - by.exponent);
                    result = (int32_t)haq_divide((int64_t)sum * by.multiplier, share) + format->zero;
                }
                haq_put(out, at++, haq_clamp(result, format));
            }
}

/* Layers */

typedef struct {
    haq_window window;         /* a linear layer: one row of 1 x 1 positions */
    int32_t transposed;
    int32_t terms;             /* products of one output, rounded up to a multiple of 4 */
    int32_t row_bytes;         /* of one output's packed weights */
    int32_t weight_low;
    int32_t shift;             /* of the accumulator, to the left */
    const uint8_t *weight;
    const int16_t *weight_zero;
    const int32_t *bias;
    const haq_factor *factor;
} haq_layer;

/* Sums of products of one row of weights with HAQ_TILE patches; both are padded to a multiple of 4, patches with zeros. */
static inline void haq_dot(const int16_t *weight, const int16_t *patches, int32_t terms, int32_t sums[HAQ_TILE]) {
    const int16_t *p0 = patches, *p1 = patches + terms, *p2 = patches + 2 * terms, *p3 = patches + 3 * terms;
    int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#if defined(__ARM_FEATURE_DSP)
    for (int32_t k = 0; k < terms; k += 2) {
        const int16x2_t w = *(const int16x2_t *)(const void *)(weight + k);
        s0 = __smlad(w, *(const int16x2_t *)(const void *)(p0 + k), s0);
        s1 = __smlad(w, *(const int16x2_t *)(const void *)(p1 + k), s1);
        s2 = __smlad(w, *(const int16x2_t *)(const void *)(p2 + k), s2);
        s3 = __smlad(w, *(const int16x2_t *)(const void *)(p3 + k), s3);
    }
#else
    for (int32_t k = 0; k < terms; ++k) {
        const int32_t w = weight[k];
        s0 += w * p0[k];
        s1 += w * p1[k];
        s2 += w * p2[k];
        s3 += w * p3[k];
    }
#endif
    sums[0] = s0;
    sums[1] = s1;
    sums[2] = s2;
    sums[3] = s3;
}

/* Rows of packed weights as 16-bit integers less their zero point. */
static inline void haq_unpack_1(const uint8_t *row, int16_t *out, int32_t terms, int32_t offset) {
    for (int32_t k = 0; k < terms; ++k) out[k] = (int16_t)(haq_load_1(row, k) + offset);
}
static inline void haq_unpack_2(const uint8_t *row, int16_t *out, int32_t terms, int32_t offset) {
    for (int32_t k = 0; k < terms; k += 4) {
        const int32_t four = *row++;
        out[k] = (int16_t)((four & 3) + offset);
        out[k + 1] = (int16_t)(((four >> 2) & 3) + offset);
        out[k + 2] = (int16_t)(((four >> 4) & 3) + offset);
        out[k + 3] = (int16_t)((four >> 6) + offset);
    }
}
static inline void haq_unpack_3(const uint8_t *row, int16_t *out, int32_t terms, int32_t offset) {
    for (int32_t k = 0; k < terms; ++k) {
        const int32_t at = 3 * k, low = row[at >> 3], shift = at & 7;
        const int32_t high = shift > 5 ? row[(at >> 3) + 1] : 0;
        out[k] = (int16_t)((((low | (high << 8)) >> shift) & 7) + offset);
    }
}
static inline void haq_unpack_4(const uint8_t *row, int16_t *out, int32_t terms, int32_t offset) {
    for (int32_t k = 0; k < terms; k += 2) {
        const int32_t two = *row++;
        out[k] = (int16_t)((two & 15) + offset);
        out[k + 1] = (int16_t)((two >> 4) + offset);
    }
}
static inline void haq_unpack_8(const uint8_t *row, int16_t *out, int32_t terms, int32_t offset) {
    for (int32_t k = 0; k < terms; ++k) out[k] = (int16_t)(row[k] + offset);
}
static inline void haq_unpack_16(const uint8_t *row, int16_t *out, int32_t terms, int32_t offset) {
    for (int32_t k = 0; k < terms; ++k) out[k] = (int16_t)(haq_load_16(row, k) + offset);
}

/* Where a kernel position of an output position lies in the input; below 0: nowhere. */
static inline int32_t haq_source(int32_t out, int32_t kernel, int32_t stride, int32_t dilation, int32_t before,
                                 int32_t size, int32_t transposed) {
    if (!transposed) {
        const int32_t at = out * stride - before + kernel * dilation;
        return at < size ? at : -1;
    }
    const int32_t at = out + before - kernel * dilation;
    return at >= 0 && at % stride == 0 && at / stride < size ? at / stride : -1;
}

#endif
