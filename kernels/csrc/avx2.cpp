// x86-64 with AVX2 and FMA: 256-bit vectors, 16 registers.
#include "kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define MMTOK_ISA isa_avx2
#define MMTOK_NAME "avx2"
#define MMTOK_WIDTH 8
#define MMTOK_TILE 4  // 8 accumulators, 4 best scores, 2 codes, 1 row element: 15 of 16 registers
#include "panels.inc"
#include "search.inc"
#include "activations.inc"
#include "attention.inc"
#include "scatter.inc"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#else
const mmtok::Isa* mmtok::isa_avx2() { return nullptr; }
#endif
