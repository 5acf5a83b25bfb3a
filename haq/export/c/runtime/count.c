/* Counts the instructions of each node under QEMU's -icount shift=0: one nanosecond of its clock each, 40 a SysTick. */
#include <stdint.h>
#include <stdio.h>

static void haq_after(int node);
#define HAQ_AFTER(node) haq_after(node)
#include "model.c"
#include "vectors.h"

#define SYSTICK_CONTROL (*(volatile uint32_t *)0xE000E010u)
#define SYSTICK_RELOAD (*(volatile uint32_t *)0xE000E014u)
#define SYSTICK_VALUE (*(volatile uint32_t *)0xE000E018u)
#define SYSTICK_MASK 0xFFFFFFu

static uint32_t last, ticks[MODEL_NODES];

static void haq_after(int node) {
    ticks[node] += (last - SYSTICK_VALUE) & SYSTICK_MASK;
    last = SYSTICK_VALUE;
}

int main(void) {
    static int8_t output[MODEL_OUTPUTS];
    SYSTICK_RELOAD = SYSTICK_MASK;
    SYSTICK_VALUE = 0;
    SYSTICK_CONTROL = 5;
    last = SYSTICK_VALUE;
    model_run(vector_inputs[0], output);
    for (int node = 0; node < MODEL_NODES; ++node) printf("%d %lu\n", node, (unsigned long)(40u * ticks[node]));
    return 0;
}
