#include <limits>

#include "../../autograd/samples.h"
#include "../ops.h"

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
