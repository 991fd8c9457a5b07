#include "tip_adapter.h"

#include "../autograd/samples.h"
#include "method.h"

namespace pupil::methods {

Tensor tip_adapter_logits(const Tensor& features, const Tensor& keys, const Tensor& values,
                          const Tensor& head, const TipAdapterOptions& o) {
  int64_t d = features.dim(-1);
  PUPIL_CHECK(features.rank() == 2 && keys.rank() == 2 && head.rank() == 2 && keys.dim(1) == d &&
                  head.dim(1) == d && values.shape() == (Shape{keys.dim(0), head.dim(0)}),
              "tip_adapter_logits: features ", features.shape(), ", keys ", keys.shape(),
              ", values ", values.shape(), ", head ", head.shape());
  Tensor affinity = linear(features, keys, {});
  Tensor votes = exp(scale(add_scalar(affinity, -1), o.beta));  // [tip_adapter 1]
  Tensor cache = matmul(votes, values.detach());
  // [tip_adapter 2]
  return add(scale(linear(features, head, {}), o.logit_scale), scale(cache, o.alpha));
}

Method tip_adapter_pipeline() {
  TipAdapterOptions o;
  Method m;
  m.name = "tip_adapter";
  m.summary = "zero-shot logits and votes of a cache of labelled features, without training";
  m.source = "Zhang et al. 2022, arXiv 2207.09519, eq. 5 and 6";
  m.options = {{"tip_adapter.alpha", o.alpha, "weight of the cache", "official code"},
               {"tip_adapter.beta", o.beta, "sharpness of the cache", "official code"}};
  m.explanation.symbols = {
      {"f", "(N, d)", "image features, length 1"},
      {"K, V", "(n, d), (n, C)", "cache: features of length 1, one-hot labels"},
      {"head", "(C, d)", "zero-shot classifier, length 1"}};
  m.explanation.equations = {{"1", "A = exp(-beta (1 - f K'))"},
                             {"2", "z = logit_scale f head' + alpha A V"}};
  m.explanation.cases = {"tip_adapter.logits"};
  return m;
}

PUPIL_SAMPLES(tip_adapter_logits) {
  auto f = [](auto& v) {
    return tip_adapter_logits(normalize(v[0]), normalize(v[1]), v[2], normalize(v[3]));
  };
  s.add("small", {{3, 6}, {8, 6}, {8, 4}, {4, 6}}, f, {.bf16 = false, .constants = {2}});
  s.add_error("other width", {{3, 6}, {8, 5}, {8, 4}, {4, 6}}, f);
  s.add_error("other classes", {{3, 6}, {8, 6}, {8, 5}, {4, 6}}, f);
}

}  // namespace pupil::methods
