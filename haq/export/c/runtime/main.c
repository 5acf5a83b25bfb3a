/* Runs the test vectors; exits with 0 if every output is what the engine computed. */
#include <stdio.h>

#include "model.h"
#include "vectors.h"

int main(void) {
    static int8_t output[MODEL_OUTPUTS];
    int wrong = 0;
    for (int n = 0; n < VECTORS; ++n) {
        model_run(vector_inputs[n], output);
        for (int i = 0; i < MODEL_OUTPUTS; ++i) wrong += output[i] != vector_outputs[n][i];
    }
    printf("%d test vectors, %d wrong outputs\n", VECTORS, wrong);
    return wrong != 0;
}
