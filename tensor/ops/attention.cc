#include <limits>

#include "../../autograd/samples.h"
#include "../launch.h"
#include "../ops.h"
#include "attention_fast.h"
#include "gemm.h"
#include "vector_math.h"

namespace pupil {
namespace {

// 0 where a token may look, -inf at later sources.
Tensor causal_mask(int64_t tokens, int64_t sources, DType dtype, Device device) {
  std::vector<double> mask(size_t(tokens * sources));
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t s = t + 1; s < sources; s++)
      mask[size_t(t * sources + s)] = -std::numeric_limits<double>::infinity();
  return from(mask, {tokens, sources}, dtype).to(device);
}

// Rows of scores become softmax(scale * row), in `to`, which may be their place. The scale is here,
// since as an option of the product it costs oneDNN its fast kernel.
template <class T>
void softmax_rows(float* scores, T* to, int64_t count, int64_t n, float scale) {
  parallel_for<Vectors::widest>(count, count * n, [=](int64_t row) {
    float* p = scores + row * n;
    T* out = to + row * n;
    float max = -INFINITY, sum = 0;
#pragma omp simd reduction(max : max)
    for (int64_t j = 0; j < n; j++) max = p[j] > max ? p[j] : max;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) {
      p[j] = vector_exp_negative((p[j] - max) * scale);
      sum += p[j];
    }
    float factor = 1 / sum;
#pragma omp simd
    for (int64_t j = 0; j < n; j++) out[j] = T(p[j] * factor);
  });
}

// Rows of the gradient of the probabilities become that of the unscaled scores, scale * p (g - <p,
// g>), in `to`, which may be their place.
template <class T>
void softmax_rows_backward(const T* probabilities, const float* gradient, T* to, int64_t count,
                           int64_t n, float scale) {
  parallel_for<Vectors::widest>(count, count * n, [=](int64_t row) {
    const T* p = probabilities + row * n;
    const float* g = gradient + row * n;
    T* out = to + row * n;
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t j = 0; j < n; j++) dot += float(p[j]) * g[j];
#pragma omp simd
    for (int64_t j = 0; j < n; j++) out[j] = T(scale * float(p[j]) * (g[j] - dot));
  });
}

// One of the `parts` matrices packed in x (batch, tokens, parts * heads * width), as (batch, heads,
// tokens, width); shares memory.
Tensor heads_of(const Tensor& x, int which, int parts, int64_t heads) {
  int64_t batch = x.dim(0), tokens = x.dim(1), row = x.dim(2), width = row / parts / heads;
  return alias(x, {batch, heads, tokens, width}, {tokens * row, width, row, 1},
               which * heads * width);
}

// Products straight on the packed projection, nothing is copied; only the probabilities are kept.
// In bf16 the scores and their gradient are float32 until the softmax is done.
template <class T>
Tensor qkv_attention_fast(const Tensor& input, int64_t heads) {
  Tensor qkv = input.contiguous().detach();
  int64_t batch = qkv.dim(0), tokens = qkv.dim(1), width = qkv.dim(2) / 3 / heads;
  float scale = float(1 / std::sqrt(double(width)));
  Tensor q = heads_of(qkv, 0, 3, heads), k = heads_of(qkv, 1, 3, heads),
         v = heads_of(qkv, 2, 3, heads);
  int64_t rows = batch * heads * tokens;
  Shape square{batch, heads, tokens, tokens};
  Tensor scores = empty(square),
         p = qkv.dtype() == DType::f32 ? scores : empty(square, qkv.dtype());
  Tensor y = empty({batch, tokens, heads * width}, qkv.dtype());
  gemm(q, transposed(k), scores);
  softmax_rows(scores.data<float>(), p.data<T>(), rows, tokens, scale);
  gemm(p, v, heads_of(y, 0, 1, heads));
  return record("qkv_attention", y, {input}, {{"heads", heads}}, [=](Backward& grad) {
    Tensor gy = heads_of(grad.gy.contiguous(), 0, 1, heads);
    Tensor gqkv = empty(qkv.shape(), qkv.dtype()), scores = empty(square);
    gemm(transposed(p), gy, heads_of(gqkv, 2, 3, heads));
    gemm(gy, transposed(v), scores);
    Tensor g = qkv.dtype() == DType::f32 ? scores : empty(square, qkv.dtype());
    softmax_rows_backward(p.data<T>(), scores.data<float>(), g.data<T>(), rows, tokens, scale);
    gemm(g, k, heads_of(gqkv, 0, 3, heads));
    gemm(transposed(g), q, heads_of(gqkv, 1, 3, heads));
    grad[0].give(gqkv);
  });
}

// The same in float32 where packed_attention is available: a head at a time, probabilities kept
// only for a backward.
Tensor qkv_attention_by_head(const Tensor& input, const packed_attention::Geometry& g) {
  Tensor qkv = input.contiguous().detach(), y = empty({g.batch, g.tokens, g.heads * g.width}), p;
  if (grad_enabled() && input.requires_grad()) p = empty({g.batch, g.heads, g.tokens, g.row()});
  packed_attention::forward(g, qkv.data<float>(), p ? p.data<float>() : nullptr, y.data<float>(),
                            empty({packed_attention::scratch(g)}).data<float>());
  return record("qkv_attention", y, {input}, {{"heads", g.heads}}, [=](Backward& grad) {
    Tensor gqkv = empty(qkv.shape()), scratch = empty({packed_attention::scratch(g)});
    packed_attention::backward(g, qkv.data<float>(), p.data<float>(),
                               grad.gy.contiguous().data<float>(), gqkv.data<float>(),
                               scratch.data<float>());
    grad[0].give(gqkv);
  });
}

}  // namespace

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                 const Tensor& mask, bool causal) {
  PUPIL_CHECK(q.rank() == 4 && k.rank() == 4 && v.rank() == 4 && q.dim(0) == k.dim(0) &&
                  q.dim(1) == k.dim(1) && q.dim(3) == k.dim(3) && v.dim(0) == k.dim(0) &&
                  v.dim(1) == k.dim(1) && v.dim(2) == k.dim(2),
              "attention: q ", q.shape(), ", k ", k.shape(), ", v ", v.shape());
  Tensor scores = pupil::scale(matmul(q, k, false, true), scale);
  if (mask) scores = add(scores, mask.detach());
  if (causal) scores = add(scores, causal_mask(q.dim(2), k.dim(2), q.dtype(), q.device()));
  return matmul(softmax(scores), v);
}

Tensor qkv_attention(const Tensor& qkv, int heads) {
  PUPIL_CHECK(qkv.rank() == 3 && heads > 0 && qkv.dim(2) % (3 * heads) == 0,
              "qkv_attention: (batch, tokens, 3 * heads * head_dim) expected, got ", qkv.shape(),
              " for ", heads, " heads");
  packed_attention::Geometry g{qkv.dim(0), qkv.dim(1), heads, qkv.dim(2) / 3 / heads};
  if (cpu_fast(qkv.dtype(), qkv.device()) && qkv.numel() > 0 && packed_attention::available(g))
    return qkv_attention_by_head(qkv, g);
  if (cpu_fast(acc_dtype(qkv.dtype()), qkv.device()) && qkv.numel() > 0)
    return (qkv.dtype() == DType::bf16 ? qkv_attention_fast<bf16>
                                       : qkv_attention_fast<float>)(qkv, heads);
  int64_t batch = qkv.dim(0), tokens = qkv.dim(1), width = qkv.dim(2) / (3 * heads);
  Tensor packed = view(qkv, {batch, tokens, 3, heads, width});
  auto part = [&](int64_t which) {
    return view(permute(slice(packed, 2, which, which + 1), {0, 3, 1, 2, 4}),
                {batch, heads, tokens, width});
  };
  Tensor y = attention(part(0), part(1), part(2), 1 / std::sqrt(double(width)));
  return view(permute(y, {0, 2, 1, 3}), {batch, tokens, heads * width});
}

PUPIL_SAMPLES(attention) {
  auto with = [](bool causal) {
    return [=](auto& v) {
      return attention(v[0], v[1], v[2], 0.7, v.size() > 3 ? v[3].detach() : Tensor(), causal);
    };
  };
  s.add("self", {{2, 3, 5, 4}, {2, 3, 5, 4}, {2, 3, 5, 4}}, with(false));
  s.add("cross", {{2, 2, 4, 3}, {2, 2, 5, 3}, {2, 2, 5, 6}}, with(false));
  s.add("causal", {{2, 2, 6, 4}, {2, 2, 6, 4}, {2, 2, 6, 4}}, with(true));
  s.add("one token", {{1, 1, 1, 2}, {1, 1, 1, 2}, {1, 1, 1, 2}}, with(true));
  s.add("one element", {{1, 1, 1, 1}, {1, 1, 1, 1}, {1, 1, 1, 1}}, with(false));
  s.add("empty batch", {{0, 2, 3, 4}, {0, 2, 3, 4}, {0, 2, 3, 4}}, with(false));
  s.add("mask", {{2, 2, 4, 3}, {2, 2, 5, 3}, {2, 2, 5, 3}}, [](auto& v) {
    return attention(v[0], v[1], v[2], 1, causal_mask(4, 5, v[0].dtype(), v[0].device()));
  });
  s.add("qkv", {{2, 5, 24}}, [](auto& v) { return qkv_attention(v[0], 2); });
  s.add("qkv one head", {{3, 4, 12}}, [](auto& v) { return qkv_attention(v[0], 1); });
  s.add("qkv one token", {{2, 1, 12}}, [](auto& v) { return qkv_attention(v[0], 2); });
  s.add("qkv many tokens", {{1, 37, 48}}, [](auto& v) { return qkv_attention(v[0], 2); });
  s.add("qkv empty batch", {{0, 3, 12}}, [](auto& v) { return qkv_attention(v[0], 2); });
  s.add_error("heads", {{2, 3, 5, 4}, {2, 2, 5, 4}, {2, 3, 5, 4}}, with(false));
  s.add_error("qkv width", {{2, 5, 20}}, [](auto& v) { return qkv_attention(v[0], 3); });
}

}  // namespace pupil
