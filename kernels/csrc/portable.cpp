// Whatever the compiler targets by itself: 128-bit vectors (SSE2, NEON).
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#define MMTOK_ISA isa_portable
#define MMTOK_NAME "portable"
#define MMTOK_WIDTH 4
#define MMTOK_TILE 4  // fits 16 registers
#include "panels.inc"
#include "search.inc"
#include "activations.inc"
#include "attention.inc"
#include "scatter.inc"
