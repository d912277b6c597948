// The C interface called through ctypes, and the threads behind it. See native.py for the Python side.
// Work runs on torch's own OpenMP threads when native.py finds their entry point: after a torch operator those threads
// spin for milliseconds, and threads of ours would fight them for the cores. Otherwise, and in a forked child (whose
// OpenMP threads are gone), threads start for one call and end with it. Calls from many Python threads are independent.
#include <stdlib.h>
#include <string.h>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "kernels.h"

using namespace mmtok;

namespace {

constexpr size_t kScratch = 7 << 20;        // bytes for all threads of a call together; the promise is 8 MiB
constexpr size_t kThreadScratch = 2 << 20;  // more only costs cache misses
constexpr int64_t kPiece = 1 << 14;         // values of an activation a thread takes at once
constexpr size_t kPacked = 32 << 20;        // bytes of packed keys and values at once, unless one head has more
constexpr double kThreadWork = 4e6;         // multiply-adds worth starting a thread for (about 30 microseconds)

std::atomic<int64_t> scratch_now{0}, scratch_peak{0};

// a few blocks stay allocated between calls: fresh pages cost more than a small search
constexpr int kKept = 3;
std::atomic<void*> kept[kKept];

class Scratch {
 public:
  Scratch(size_t bytes, bool keep) : bytes_(keep && bytes <= kThreadScratch ? kThreadScratch : bytes) {
    for (int i = 0; i < kKept && !memory_ && bytes_ == kThreadScratch; i++) memory_ = kept[i].exchange(nullptr);
    if (!memory_ && posix_memalign(&memory_, 4096, bytes_) != 0) memory_ = nullptr;
    int64_t now = scratch_now += (int64_t)bytes_, peak = scratch_peak;
    while (now > peak && !scratch_peak.compare_exchange_weak(peak, now)) {
    }
  }
  ~Scratch() {
    scratch_now -= (int64_t)bytes_;
    for (int i = 0; i < kKept && memory_ && bytes_ == kThreadScratch; i++) {
      void* empty = nullptr;
      if (kept[i].compare_exchange_strong(empty, memory_)) memory_ = nullptr;
    }
    free(memory_);
  }
  Scratch(const Scratch&) = delete;
  char* get() const { return (char*)memory_; }

 private:
  size_t bytes_;
  void* memory_ = nullptr;
};

// GOMP_parallel(function, data, threads, flags) of the OpenMP library torch uses
using OpenmpParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
std::atomic<OpenmpParallel> openmp_parallel{nullptr};

// body(i) for i in 0..count-1; each of `threads` threads takes the next i until none is left
template <class Body>
void parallel(int threads, int64_t count, const Body& body) {
  std::atomic<int64_t> next{0};
  auto loop = [&] {
    for (int64_t i; (i = next++) < count;) body(i);
  };
  if (threads > count) threads = (int)count;
  if (threads <= 1) return loop();
  if (OpenmpParallel team = openmp_parallel)
    return team([](void* data) { (*(decltype(loop)*)data)(); }, &loop, (unsigned)threads, 0);
  std::vector<std::thread> others;
  try {
    for (int t = 1; t < threads; t++) others.emplace_back(loop);
  } catch (...) {
    // no more threads to be had: those that run share the work
  }
  loop();
  for (auto& thread : others) thread.join();
}

// body(i, scratch) for i in 0..count-1 with `bytes` of scratch memory for each thread; 0, or 1 when memory is lacking
template <class Body>
int with_scratch(int threads, size_t bytes, int64_t count, const Body& body) {
  std::atomic<int> failed{0};
  std::atomic<int64_t> next{0};
  parallel(threads, threads, [&](int64_t) {
    Scratch scratch(bytes, threads <= kKept);
    if (!scratch.get()) {
      failed = 1;
      return;
    }
    for (int64_t i; (i = next++) < count;) body(i, scratch.get());
  });
  return failed;
}

int useful_threads(int threads, double work) {
  int most = (int)(work / kThreadWork) + 1;
  return threads < 1 ? 1 : threads < most ? threads : most;
}

const Isa* isa(int path) {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#if defined(__clang__) || __GNUC__ >= 10
  if (path == 0) return avx512 && __builtin_cpu_supports("avx512bf16") ? isa_avx512bf16() : nullptr;
#endif
  if (path == 1) return avx512 ? isa_avx512() : nullptr;
  if (path == 2) return avx2 ? isa_avx2() : nullptr;
#endif
  return path == 3 ? isa_portable() : nullptr;
}

// runs the job over rows 0..count; 0, or 1 when memory is lacking
int run(const Isa* table, const Job& job, int64_t count, int threads) {
  if (count == 0) return 0;
  const int64_t depths = job.quantizers ? job.quantizers : 1;
  threads = useful_threads(threads, (double)count * job.books.size * job.books.dim * depths);
  Plan plan;
  for (;; threads = (threads + 1) / 2) {
    const size_t budget = kScratch / threads < kThreadScratch ? kScratch / threads : kThreadScratch;
    plan = table->plan(job, (count + threads - 1) / threads, budget);
    if (plan.bytes <= budget || threads == 1) break;
  }
  // even chunks, as many for each thread
  int64_t chunks = (count + plan.rows - 1) / plan.rows;
  chunks = (chunks + threads - 1) / threads * threads;
  const int64_t unit = 8, rows = ((count + chunks - 1) / chunks + unit - 1) / unit * unit;
  return with_scratch(threads, plan.bytes, (count + rows - 1) / rows, [&](int64_t i, char* scratch) {
    table->run(job, plan, i * rows, (i + 1) * rows < count ? (i + 1) * rows : count, scratch);
  });
}

bool outside(const int64_t* codes, const uint8_t* mask, int64_t count, int64_t size) {
  bool bad = false;
  for (int64_t n = 0; n < count; n++) bad |= (uint64_t)codes[n] >= (uint64_t)size && !(mask && !mask[n]);
  return bad;
}

}  // namespace

extern "C" {

// native.py asks for this number: raise it there and here when a function or the meaning of an argument changes
int mmtok_version() { return 4; }

// null: threads of our own
void mmtok_use_openmp(void* parallel_entry) {
  openmp_parallel = (OpenmpParallel)parallel_entry;
#if defined(__unix__) || defined(__APPLE__)
  static std::atomic<bool> watched{false};
  if (!watched.exchange(true)) pthread_atfork(nullptr, nullptr, [] { openmp_parallel = nullptr; });
#endif
}

// means [Q, D] of codebooks [Q, V, D]; not torch's mean, whose threads would still spin when the search begins
void mmtok_centres(const void* books, int64_t quantizers, int64_t size, int64_t dim, int dtype, float* out) {
  std::vector<double> sum(dim);
  for (int64_t q = 0; q < quantizers; q++) {
    for (double& value : sum) value = 0;
    for (int64_t v = q * size; v < (q + 1) * size; v++)
      for (int64_t d = 0; d < dim; d++) {
        float value;
        if (dtype == kFloat32) {
          value = ((const float*)books)[v * dim + d];
        } else {
          const uint32_t word = (uint32_t)((const uint16_t*)books)[v * dim + d] << 16;
          memcpy(&value, &word, 4);
        }
        sum[d] += value;
      }
    for (int64_t d = 0; d < dim; d++) out[q * dim + d] = (float)(sum[d] / (double)size);
  }
}

const char* mmtok_path(int path) {
  const Isa* table = isa(path);
  return table ? table->name : nullptr;
}

int mmtok_nearest(int path, int threads, const void* x, int64_t count, int64_t row, int64_t column, int x_dtype,
                  const void* book, const float* centre, int64_t size, int64_t dim, int book_dtype, int64_t k,
                  int64_t* codes, float* distance) {
  Job job = {{x, row, column, x_dtype}, {book, centre, size, dim, book_dtype}, k, 0, nullptr, codes, distance, nullptr};
  return run(isa(path), job, count, threads);
}

int mmtok_residual(int path, int threads, const void* x, int64_t count, int64_t row, int64_t column, int x_dtype,
                   const void* books, const float* centre, int64_t quantizers, int64_t size, int64_t dim,
                   int book_dtype, const int64_t* depth, int64_t* codes, float* sum) {
  Job job = {{x, row, column, x_dtype}, {books, centre, size, dim, book_dtype}, 1, quantizers, depth, codes, nullptr,
             sum};
  return run(isa(path), job, count, threads);
}

// 2: a code lies outside 0..size-1, nothing was written
int mmtok_sums(int path, int threads, const void* x, int64_t count, int64_t row, int64_t column, int x_dtype,
               int64_t dim, const int64_t* codes, const uint8_t* mask, int64_t size, float* counts, float* sums) {
  if (outside(codes, mask, count, size)) return 2;
  threads = useful_threads(threads, (double)(count + size) * dim * 4);
  const int64_t share = (size + threads - 1) / threads;
  parallel(threads, threads, [&](int64_t i) {
    const int64_t low = i * share < size ? i * share : size, high = low + share < size ? low + share : size;
    isa(path)->sums({x, row, column, x_dtype}, dim, codes, mask, count, low, high, counts, sums);
  });
  return 0;
}

int mmtok_gather(int path, int threads, float* out, int64_t count, const int64_t* codes, const void* books,
                 int64_t quantizers, int64_t size, int64_t dim, int book_dtype, float alpha) {
  if (outside(codes, nullptr, count * quantizers, size)) return 2;
  threads = useful_threads(threads, (double)count * dim * quantizers * 4);
  const int64_t share = (count + threads - 1) / threads;
  parallel(threads, threads, [&](int64_t i) {
    const int64_t low = i * share < count ? i * share : count, high = low + share < count ? low + share : count;
    isa(path)->gather(out, codes, {books, nullptr, size, dim, book_dtype}, quantizers, alpha, low, high);
  });
  return 0;
}

// y = snake(x), or elu(x) where alpha is null; see Wave
void mmtok_activation(int path, int threads, const void* x, void* y, int64_t count, int dtype, int64_t channels,
                      int64_t inner, const float* alpha, const float* inverse) {
  const Wave wave = {x, y, channels, inner, alpha, inverse, dtype};
  const int64_t unit = alpha && inner == 1 ? channels : 1, piece = kPiece / unit > 0 ? kPiece / unit * unit : unit;
  const auto run = alpha ? isa(path)->snake : isa(path)->elu;
  parallel(useful_threads(threads, (double)count * 16), (count + piece - 1) / piece, [&](int64_t i) {
    run(wave, i * piece, (i + 1) * piece < count ? (i + 1) * piece : count);
  });
}

// of x [rows, inner], row r of channel r % channels; sums [rows, 2]
void mmtok_snake_backward(int path, int threads, const float* grad, const float* x, float* dx, int64_t rows,
                          int64_t channels, int64_t inner, const float* alpha, const float* inverse, double* sums) {
  parallel(useful_threads(threads, (double)rows * inner * 32), rows, [&](int64_t r) {
    isa(path)->snake_row_backward(grad + r * inner, x + r * inner, dx + r * inner, alpha[r % channels],
                                  inverse[r % channels], inner, sums + 2 * r);
  });
}

// 1: no memory. Strides in elements: batch, head, row of q, k and v
int mmtok_attention(int path, int threads, const void* q, const void* k, const void* v, const int64_t* strides,
                    void* out, int64_t batch, int64_t heads, int64_t queries, int64_t keys, int64_t dim, float scale,
                    int dtype) {
  const int64_t* s = strides;
  const Attend job = {{q, s[0], s[1], s[2]}, {k, s[3], s[4], s[5]}, {v, s[6], s[7], s[8]}, out, heads, queries, keys,
                      dim, scale * 1.44269504f, dtype};
  const Isa* table = isa(path);
  const int64_t all = batch * heads, chunks = (queries + kQueries - 1) / kQueries;
  const size_t bytes = (table->attention_bytes(job) + 63) / 64 * 64;
  threads = useful_threads(threads, 2.0 * (double)all * queries * keys * dim);
  int64_t group = (int64_t)(kPacked / bytes);
  group = group < threads ? threads : group;
  if (group > all) group = all;
  Scratch packed((size_t)group * bytes, false);
  if (!packed.get()) return 1;
  for (int64_t first = 0; first < all; first += group) {
    const int64_t count = first + group < all ? group : all - first;
    parallel(threads, count, [&](int64_t i) { table->attention_pack(job, first + i, packed.get() + i * bytes); });
    const int failed = with_scratch(threads, table->attention_scratch(job), count * chunks, [&](int64_t i, char* scratch) {
      const int64_t begin = i % chunks * kQueries, end = begin + kQueries < queries ? begin + kQueries : queries;
      table->attention(job, first + i / chunks, begin, end, packed.get() + i / chunks * bytes, scratch);
    });
    if (failed) return failed;
  }
  return 0;
}

// floating-point operations a second of independent multiply-adds on `threads` threads
double mmtok_multiply_add_peak(int path, int threads, int64_t rounds) {
  std::atomic<int64_t> operations{0};
  const auto start = std::chrono::steady_clock::now();
  parallel(threads, threads, [&](int64_t) {
    float sink = 1e-3f;
    operations += (int64_t)isa(path)->multiply_add(rounds, &sink);
    if (sink == 1.0f) operations += 1;  // the loop must not be optimized away
  });
  return operations / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// the most scratch memory held at once since the last call, over all threads
int64_t mmtok_scratch_peak() { return scratch_peak.exchange(scratch_now); }

}  // extern "C"
