// The element-wise steps of a layer for the CPU, each one sweep over memory.
//
// Every function works row by row and a row's result depends on that row alone, so its bits are the
// same in any company and on any number of threads. Sums are fp32 whatever the tensors hold.
//
// Legend: T float or bf16; N rows of the pass; B sequences, G key heads, Q query positions, R query
// heads a key head, S keys.

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef _OPENMP
#include <omp.h>
#define THREAD omp_get_thread_num()
#else
#define THREAD 0
#endif

namespace {

struct bf16 {
  uint16_t bits;
};

inline float get(float value) { return value; }
inline float get(bf16 value) {
  uint32_t wide = uint32_t(value.bits) << 16;
  float out;
  std::memcpy(&out, &wide, 4);
  return out;
}

inline void put(float& into, float value) { into = value; }
inline void put(bf16& into, float value) {  // to nearest, ties to even; nan stays nan
  uint32_t wide;
  std::memcpy(&wide, &value, 4);
  uint32_t rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
  into.bits = value != value ? uint16_t(0x7fc0) : uint16_t(rounded);
}

template <typename T>
inline float rounded(float value) {
  T kept;
  put(kept, value);
  return get(kept);
}

// Cephes' expf: 2^n times a polynomial; 0 below the smallest normal number.
inline float exponential(float x) {
  float inside = x > 88.3f ? 88.3f : x;
  float n = std::floor(inside * 1.44269504088896341f + 0.5f);
  float r = inside - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  float clamped = n < -126.0f ? -126.0f : n;
  int32_t power = (int32_t(clamped) + 127) << 23;
  float scale;
  std::memcpy(&scale, &power, 4);
  float out = p * scale;
  return x < -87.3f ? 0.0f : out;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

inline float tanh_of(float x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }

constexpr long LANES = 16;
constexpr float GELU_A = 0.7978845608028654f;  // sqrt(2 / pi)
constexpr float GELU_B = 0.044715f;

// y = x / sqrt(mean(x^2) + eps) * w. With `delta`, x + delta first, kept in `sum`.
// `whole`: the product with w is not rounded before (Gemma).
template <typename T>
void rms_forward(const T* x, const T* delta, T* sum, const float* w, T* y, float* scales, long rows,
                 long dim, float eps, int whole, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long row = 0; row < rows; row++) {
    const T* in = x + row * dim;
    if (delta) {
      const T* more = delta + row * dim;
      T* out = sum + row * dim;
#pragma omp simd
      for (long i = 0; i < dim; i++) put(out[i], get(in[i]) + get(more[i]));
      in = out;
    }
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (long i = 0; i < dim; i++) squares += get(in[i]) * get(in[i]);
    float scale = 1.0f / std::sqrt(squares / float(dim) + eps);
    scales[row] = scale;
    T* out = y + row * dim;
    if (whole) {
#pragma omp simd
      for (long i = 0; i < dim; i++) put(out[i], get(in[i]) * scale * w[i]);
    } else {
#pragma omp simd
      for (long i = 0; i < dim; i++) put(out[i], rounded<T>(get(in[i]) * scale) * w[i]);
    }
  }
}

// grad_x = scale (g w - n mean(g w n)), n = x scale; plus what comes past the norm.
template <typename T>
void rms_backward(const T* x, const T* grad, const T* past, const float* w, const float* scales,
                  T* grad_x, long rows, long dim, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long row = 0; row < rows; row++) {
    const T* in = x + row * dim;
    const T* g = grad + row * dim;
    float scale = scales[row], along = 0.0f;
#pragma omp simd reduction(+ : along)
    for (long i = 0; i < dim; i++) along += get(g[i]) * w[i] * get(in[i]);
    along *= scale * scale / float(dim);
    T* out = grad_x + row * dim;
    if (past) {
      const T* more = past + row * dim;
#pragma omp simd
      for (long i = 0; i < dim; i++)
        put(out[i], get(more[i]) + scale * (get(g[i]) * w[i] - get(in[i]) * along));
    } else {
#pragma omp simd
      for (long i = 0; i < dim; i++) put(out[i], scale * (get(g[i]) * w[i] - get(in[i]) * along));
    }
  }
}

// act(gate) * up, the halves of a row.
template <typename T>
void gated_forward(const T* both, T* y, long rows, long half, int gelu, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long row = 0; row < rows; row++) {
    const T* gate = both + row * 2 * half;
    const T* up = gate + half;
    T* out = y + row * half;
    if (gelu) {
#pragma omp simd
      for (long i = 0; i < half; i++) {
        float x = get(gate[i]);
        float inner = tanh_of(GELU_A * (x + GELU_B * x * x * x));
        put(out[i], 0.5f * x * (1.0f + inner) * get(up[i]));
      }
    } else {
#pragma omp simd
      for (long i = 0; i < half; i++) {
        float x = get(gate[i]);
        put(out[i], x * sigmoid(x) * get(up[i]));
      }
    }
  }
}

template <typename T>
void gated_backward(const T* both, const T* grad, T* grad_both, long rows, long half, int gelu,
                    int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long row = 0; row < rows; row++) {
    const T* gate = both + row * 2 * half;
    const T* up = gate + half;
    const T* g = grad + row * half;
    T* grad_gate = grad_both + row * 2 * half;
    T* grad_up = grad_gate + half;
    if (gelu) {
#pragma omp simd
      for (long i = 0; i < half; i++) {
        float x = get(gate[i]), u = get(up[i]), d = get(g[i]);
        float inner = tanh_of(GELU_A * (x + GELU_B * x * x * x));
        float slope = GELU_A * (1.0f + 3.0f * GELU_B * x * x) * (1.0f - inner * inner);
        put(grad_gate[i], d * u * (0.5f * (1.0f + inner) + 0.5f * x * slope));
        put(grad_up[i], d * 0.5f * x * (1.0f + inner));
      }
    } else {
#pragma omp simd
      for (long i = 0; i < half; i++) {
        float x = get(gate[i]), u = get(up[i]), d = get(g[i]);
        float s = sigmoid(x);
        put(grad_gate[i], d * u * s * (1.0f + x * (1.0f - s)));
        put(grad_up[i], d * x * s);
      }
    }
  }
}

// Rotary positions of `heads` heads at the start of each row of x; the halves of a head are paired.
// `sign` -1 turns back. Rows of x and y may be longer than heads * size.
template <typename T>
void rotate(const T* x, long x_stride, T* y, long y_stride, const T* cosines, const T* sines,
            long rows, long heads, long size, float sign, int threads) {
  long half = size / 2;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long row = 0; row < rows; row++) {
    const T* c = cosines + row * size;
    const T* s = sines + row * size;
    for (long head = 0; head < heads; head++) {
      const T* in = x + row * x_stride + head * size;
      T* out = y + row * y_stride + head * size;
#pragma omp simd
      for (long i = 0; i < half; i++) {
        float a = get(in[i]), b = get(in[i + half]);
        put(out[i], a * get(c[i]) - sign * b * get(s[i]));
        put(out[i + half], b * get(c[i + half]) + sign * a * get(s[i + half]));
      }
    }
  }
}

// In place over scores [B, G, Q, R, S]: softmax of scale * score over the keys a query may see.
template <typename T>
void softmax_forward(T* scores, const int64_t* positions, long position_stride, long batch,
                     long groups, long queries, long repeats, long keys, float scale, long window,
                     int threads) {
  long rows = batch * groups * queries * repeats;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long row = 0; row < rows; row++) {
    long query = row / repeats % queries, sequence = row / (repeats * queries * groups);
    long position = positions[sequence * position_stride + query];
    long end = position + 1 < keys ? position + 1 : keys;
    long begin = window && end > window ? end - window : 0;
    T* s = scores + row * keys;
    float top = -INFINITY;
#pragma omp simd reduction(max : top)
    for (long i = begin; i < end; i++) top = get(s[i]) > top ? get(s[i]) : top;
    float total = 0.0f;
#pragma omp simd reduction(+ : total)
    for (long i = begin; i < end; i++) total += exponential((get(s[i]) - top) * scale);
    float share = 1.0f / total;
#pragma omp simd
    for (long i = begin; i < end; i++)
      put(s[i], exponential((get(s[i]) - top) * scale) * share);
    std::memset(static_cast<void*>(s), 0, begin * sizeof(T));
    std::memset(static_cast<void*>(s + end), 0, (keys - end) * sizeof(T));
  }
}

// In place over d = d loss / d p: scale p (d - total), the gradient of the scores.
template <typename T>
void softmax_backward(T* d, const T* p, const float* totals, long rows, long keys, float scale,
                      int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long row = 0; row < rows; row++) {
    T* out = d + row * keys;
    const T* kept = p + row * keys;
    float total = totals[row];
#pragma omp simd
    for (long i = 0; i < keys; i++)
      put(out[i], scale * get(kept[i]) * (get(out[i]) - total));
  }
}

template <typename T>
void log_sum_exp(const T* x, float* out, long rows, long columns, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long row = 0; row < rows; row++) {
    const T* in = x + row * columns;
    float top = -INFINITY, total = 0.0f, lanes[LANES] = {0.0f};
#pragma omp simd reduction(max : top)
    for (long i = 0; i < columns; i++) top = get(in[i]) > top ? get(in[i]) : top;
    // Lanes by hand: the order of the sum must not depend on T, since a sampler holds logits as fp32
    // where a trainer holds them as bf16.
    long whole = columns / LANES * LANES;
    for (long i = 0; i < whole; i += LANES)
#pragma omp simd
      for (long lane = 0; lane < LANES; lane++)
        lanes[lane] += exponential(get(in[i + lane]) - top);
    for (long i = whole; i < columns; i++) lanes[i - whole] += exponential(get(in[i]) - top);
    for (float lane : lanes) total += lane;
    out[row] = top + std::log(total);
  }
}

// In place over logits: d loss / d logits = sum over a row's pairs of weight (onehot - softmax).
// Pairs of row i are firsts[i] to firsts[i + 1]. `at` holds one number a pair, `sums` a row of zeros
// for each thread, zero again afterwards.
template <typename T>
void cross_entropy_backward(T* logits, const float* totals, const int64_t* firsts,
                            const int64_t* tokens, const float* weights, float* at, float* sums,
                            long rows, long columns, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long row = 0; row < rows; row++) {
    T* x = logits + row * columns;
    float* by_token = sums + THREAD * columns;
    float total = totals[row], weight = 0.0f;
    int64_t first = firsts[row], last = firsts[row + 1];
    for (int64_t i = first; i < last; i++) {
      weight += weights[i];
      by_token[tokens[i]] += weights[i];
    }
    for (int64_t i = first; i < last; i++)
      at[i] = by_token[tokens[i]] - weight * exponential(get(x[tokens[i]]) - total);
#pragma omp simd
    for (long i = 0; i < columns; i++) put(x[i], -weight * exponential(get(x[i]) - total));
    for (int64_t i = first; i < last; i++) {
      put(x[tokens[i]], at[i]);
      by_token[tokens[i]] = 0.0f;
    }
  }
}

}  // namespace

#define FOR_TYPE(T, NAME)                                                                        \
  extern "C" void rms_forward_##NAME(const T* x, const T* delta, T* sum, const float* w, T* y,   \
                                     float* scales, long rows, long dim, float eps, int whole,   \
                                     int threads) {                                              \
    rms_forward(x, delta, sum, w, y, scales, rows, dim, eps, whole, threads);                    \
  }                                                                                              \
  extern "C" void rms_backward_##NAME(const T* x, const T* grad, const T* past, const float* w,  \
                                      const float* scales, T* grad_x, long rows, long dim,       \
                                      int threads) {                                             \
    rms_backward(x, grad, past, w, scales, grad_x, rows, dim, threads);                          \
  }                                                                                              \
  extern "C" void gated_forward_##NAME(const T* both, T* y, long rows, long half, int gelu,      \
                                       int threads) {                                            \
    gated_forward(both, y, rows, half, gelu, threads);                                           \
  }                                                                                              \
  extern "C" void gated_backward_##NAME(const T* both, const T* grad, T* grad_both, long rows,   \
                                        long half, int gelu, int threads) {                      \
    gated_backward(both, grad, grad_both, rows, half, gelu, threads);                            \
  }                                                                                              \
  extern "C" void rotate_##NAME(const T* x, long x_stride, T* y, long y_stride, const T* cosines, \
                                const T* sines, long rows, long heads, long size, float sign,    \
                                int threads) {                                                   \
    rotate(x, x_stride, y, y_stride, cosines, sines, rows, heads, size, sign, threads);          \
  }                                                                                              \
  extern "C" void softmax_forward_##NAME(T* scores, const int64_t* positions, long stride,       \
                                         long batch, long groups, long queries, long repeats,    \
                                         long keys, float scale, long window, int threads) {     \
    softmax_forward(scores, positions, stride, batch, groups, queries, repeats, keys, scale,     \
                    window, threads);                                                            \
  }                                                                                              \
  extern "C" void softmax_backward_##NAME(T* d, const T* p, const float* totals, long rows,      \
                                          long keys, float scale, int threads) {                 \
    softmax_backward(d, p, totals, rows, keys, scale, threads);                                  \
  }                                                                                              \
  extern "C" void log_sum_exp_##NAME(const T* x, float* out, long rows, long columns,            \
                                     int threads) {                                              \
    log_sum_exp(x, out, rows, columns, threads);                                                 \
  }                                                                                              \
  extern "C" void cross_entropy_backward_##NAME(                                                 \
      T* logits, const float* totals, const int64_t* firsts, const int64_t* tokens,              \
      const float* weights, float* at, float* sums, long rows, long columns, int threads) {      \
    cross_entropy_backward(logits, totals, firsts, tokens, weights, at, sums, rows, columns,     \
                           threads);                                                             \
  }

FOR_TYPE(float, float32)
FOR_TYPE(bf16, bfloat16)
