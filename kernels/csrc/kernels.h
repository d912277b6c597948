// What the instruction-set builds of search.inc share with the thread driver in library.cpp.
// Legend: N rows, D dimensions, V codes, Q depths, k nearest. Plain C types only: nothing here may be compiled twice
// with different instruction sets and then merged by the linker.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace mmtok {

enum Dtype { kFloat32 = 0, kBfloat16 = 1 };

// x [N, D] with element strides
struct Rows {
  const void* data;
  int64_t row, column;
  int32_t dtype;
};

// Q contiguous codebooks [Q, V, D], V below 2^31, and their means [Q, D]
struct Books {
  const void* data;
  const float* centre;
  int64_t size, dim;
  int32_t dtype;
};

// nearest: quantizers == 0, codes [N, k], distance [N, k]. residual: codes [N, quantizers], sum [N, D].
struct Job {
  Rows x;
  Books books;
  int64_t k, quantizers;
  const int64_t* depth;  // [N] or null
  int64_t* codes;
  float* distance;
  float* sum;
};

// An activation, element by element: x and y of one dtype and layout. Channel of value i: i / inner modulo `channels`.
struct Wave {
  const void* x;
  void* y;
  int64_t channels, inner;
  const float *alpha, *inverse;  // [channels]; null where the activation has no factors
  int32_t dtype;
};

// [B, H, L, D] with element strides, D without gaps
struct Heads {
  const void* data;
  int64_t batch, head, row;
};

constexpr int64_t kQueries = 64;  // of a head that a thread takes at once; a multiple of every tile height

// softmax(scale q k^T) v; out [B, L, H, D] without gaps; the scale holds log2(e)
struct Attend {
  Heads q, k, v;
  void* out;
  int64_t heads, queries, keys, dim;
  float scale;
  int32_t dtype;
};

// How a thread's scratch memory is divided.
struct Plan {
  int64_t rows;   // rows of a chunk, a multiple of the tile height
  int64_t pairs;  // panel pairs packed at once, a multiple of `group`
  int64_t group;  // panel pairs between two updates of the running best
  size_t bytes;
};

struct Isa {
  const char* name;
  // the plan for chunks of about `rows` rows in at most `budget` bytes; bytes > budget when even the least is more
  Plan (*plan)(const Job&, int64_t rows, size_t budget);
  void (*run)(const Job&, const Plan&, int64_t begin, int64_t end, char* scratch);
  // adds rows whose code lies in [low, high) to sums [V, D] and counts [V]
  void (*sums)(const Rows& x, int64_t dim, const int64_t* codes, const uint8_t* mask, int64_t count, int64_t low,
               int64_t high, float* counts, float* sums);
  // out [N, D] += alpha * sum over q of books[q, codes[n, q]] for rows begin..end
  void (*gather)(float* out, const int64_t* codes, const Books&, int64_t quantizers, float alpha, int64_t begin,
                 int64_t end);
  // values begin..end; with inner == 1 `begin` and `end` are multiples of `channels`
  void (*snake)(const Wave&, int64_t begin, int64_t end);
  void (*elu)(const Wave&, int64_t begin, int64_t end);
  // one row of `inner` values that share their factors: dx, and two sums of which the gradient of alpha is made
  void (*snake_row_backward)(const float* grad, const float* x, float* dx, float alpha, float inverse, int64_t inner,
                             double* sums);
  // of head `index` (of all batches): bytes of its packed keys and values, their packing, and queries begin..end
  size_t (*attention_bytes)(const Attend&);
  void (*attention_pack)(const Attend&, int64_t index, char* packed);
  size_t (*attention_scratch)(const Attend&);
  void (*attention)(const Attend&, int64_t index, int64_t begin, int64_t end, const char* packed, char* scratch);
  // `rounds` rounds of independent multiply-adds; the floating-point operations done
  double (*multiply_add)(int64_t rounds, float* sink);
};

const Isa* isa_avx512bf16();
const Isa* isa_avx512();
const Isa* isa_avx2();
const Isa* isa_portable();

}  // namespace mmtok
