/* Start of an Arm Cortex-M with semihosting (QEMU's mps2-an500 and mps2-an386). */
#include <stdint.h>
#include <stdlib.h>

extern uint32_t _stack_top, _data_load, _data_start, _data_end, _bss_start, _bss_end;
extern int main(void);
extern void initialise_monitor_handles(void);

void _init(void) {}
void _fini(void) {}

void reset_handler(void) {
    const uint32_t *from = &_data_load;
    for (uint32_t *to = &_data_start; to < &_data_end;) *to++ = *from++;
    for (uint32_t *to = &_bss_start; to < &_bss_end;) *to++ = 0;
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* floating point unit, which the C library saves */
    initialise_monitor_handles();
    exit(main());
}

static void fault(void) { abort(); }

__attribute__((section(".vectors"), used)) static void (*const vectors[16])(void) = {
    (void (*)(void))(void *)&_stack_top, reset_handler, fault, fault, fault, fault, fault};
