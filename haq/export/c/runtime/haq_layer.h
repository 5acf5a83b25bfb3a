/* One layer for HAQ_W-bit weights that reads HAQ_A-bit and writes HAQ_O-bit elements; included once for each. */
#define HAQ_JOIN_(name, bits) name##bits
#define HAQ_JOIN(name, bits) HAQ_JOIN_(name, bits)
#define HAQ_NAME__(w, a, o) haq_layer_w##w##_a##a##_o##o
#define HAQ_NAME_(w, a, o) HAQ_NAME__(w, a, o)

/* What one output position reads of one group, less the zero point; padding is 0. */
static inline void HAQ_JOIN(HAQ_NAME_(HAQ_W, HAQ_A, HAQ_O), _gather)(const haq_layer *layer, const haq_tensor *in,
                                                                    int32_t group, int32_t position, int16_t *patch) {
    const haq_window *w = &layer->window;
    const int32_t row = position / w->out_width, column = position % w->out_width;
    const int32_t inner = w->channels / w->groups, plane = w->height * w->width;
    const int32_t offset = in->low - in->zero;
    int32_t k = 0;
    /* What the last four have too many. */
    for (int32_t spare = 1; spare < 4; ++spare) patch[layer->terms - spare] = 0;
    for (int32_t c = group * inner; c < (group + 1) * inner; ++c)
        for (int32_t i = 0; i < w->kernel[0]; ++i) {
            const int32_t y =
                haq_source(row, i, w->stride[0], w->dilation[0], w->top, w->height, layer->transposed);
            for (int32_t j = 0; j < w->kernel[1]; ++j, ++k) {
                const int32_t x =
                    haq_source(column, j, w->stride[1], w->dilation[1], w->left, w->width, layer->transposed);
                const int32_t at = c * plane + y * w->width + x;
                patch[k] = (int16_t)(y < 0 || x < 0 ? 0 : HAQ_JOIN(haq_load_, HAQ_A)(in->data, at) + offset);
            }
        }
}

HAQ_KERNEL void HAQ_NAME_(HAQ_W, HAQ_A, HAQ_O)(const haq_layer *layer, const haq_tensor *in, const haq_tensor *out,
                                           const haq_format *format, int16_t *scratch) {
    const haq_window *w = &layer->window;
    const int32_t positions = w->out_height * w->out_width, terms = layer->terms;
    const int32_t outer = w->outputs / w->groups;
    int16_t *weights = scratch, *patches = scratch + terms;
    for (int32_t group = 0; group < w->groups; ++group)
        for (int32_t first = 0; first < positions; first += HAQ_TILE) {
            const int32_t count = positions - first < HAQ_TILE ? positions - first : HAQ_TILE;
            for (int32_t t = 0; t < HAQ_TILE; ++t)
                HAQ_JOIN(HAQ_NAME_(HAQ_W, HAQ_A, HAQ_O), _gather)
                (layer, in, group, first + (t < count ? t : 0), patches + t * terms);
            for (int32_t o = group * outer; o < (group + 1) * outer; ++o) {
                int32_t sums[HAQ_TILE];
                const uint8_t *row = layer->weight + o * layer->row_bytes;
                HAQ_JOIN(haq_unpack_, HAQ_W)(row, weights, terms, layer->weight_low - layer->weight_zero[o]);
                haq_dot(weights, patches, terms, sums);
                for (int32_t t = 0; t < count; ++t) {
                    const int32_t biased = sums[t] * (1 << layer->shift) + layer->bias[o];
                    const int32_t y = haq_requantize(biased, layer->factor[o], format);
                    HAQ_JOIN(haq_store_, HAQ_O)(out->data, o * positions + first + t, y - out->low);
                }
            }
        }
}

#undef HAQ_JOIN_
#undef HAQ_JOIN
#undef HAQ_NAME__
#undef HAQ_NAME_
#undef HAQ_W
#undef HAQ_A
#undef HAQ_O
