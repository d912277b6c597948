// x86-64 with AVX-512 F, BW, DQ, VL: 512-bit vectors, 32 registers.
#include "kernels.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif
#define MMTOK_ISA isa_avx512
#define MMTOK_NAME "avx512"
#define MMTOK_WIDTH 16
#define MMTOK_TILE 8  // 16 accumulators, 8 best scores, 2 codes, 1 row element: 27 of 32 registers
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
const mmtok::Isa* mmtok::isa_avx512() { return nullptr; }
#endif
