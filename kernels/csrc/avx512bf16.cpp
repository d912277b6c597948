// x86-64 with AVX-512 and its bfloat16 products: avx512.cpp, but wide vectors are searched as halves.inc says.
#include "kernels.h"

#if defined(__x86_64__) && (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 10))
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
#endif
#define MMTOK_ISA isa_avx512bf16
#define MMTOK_NAME "avx512bf16"
#define MMTOK_WIDTH 16
#define MMTOK_TILE 8
#define MMTOK_HALVES
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
const mmtok::Isa* mmtok::isa_avx512bf16() { return nullptr; }
#endif
