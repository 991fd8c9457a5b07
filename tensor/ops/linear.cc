#include "../../autograd/samples.h"
#include "broadcast.h"
#include "gemm.h"

namespace pupil {

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  require_floating("linear", x);
  PUPIL_CHECK(x.rank() >= 1 && weight.rank() == 2 && x.dim(-1) == weight.dim(1) &&
                  (!bias || (bias.rank() == 1 && bias.dim(0) == weight.dim(0))),
              "linear: x ", x.shape(), ", weight ", weight.shape(), ", bias ",
              bias ? bias.shape() : Shape{});
  PUPIL_CHECK((weight.dtype() == x.dtype() || weight.dtype() == acc_dtype(x.dtype())) &&
                  (!bias || bias.dtype() == weight.dtype()),
              "linear: x is ", name_of(x.dtype()), ", weight ", name_of(weight.dtype()));
  Shape shape = x.shape();
  shape[-1] = weight.dim(0);
  Tensor y = empty(shape, x.dtype(), x.device());
  Tensor rows = as_matrix(x), w = weight.to(x.dtype());
  gemm(rows, transposed(w), as_matrix(y), 0, bias ? bias.contiguous() : bias);
  Tensor saved_rows = weight.requires_grad() ? rows : Tensor();
  if (!x.requires_grad()) w = Tensor();
  std::vector<Tensor> inputs{x, weight};
  if (bias) inputs.push_back(bias);
  return record("linear", y, inputs, [saved_rows, w](Backward& grad) {
    Tensor g = as_matrix(grad.gy);
    float beta;
    if (grad.inputs.size() > 2 && grad[2].needed) {
      Tensor to = grad[2].into(beta);
      column_sum(g, to, beta);
    } else if (grad.inputs.size() > 2)
      grad[2].none();
    if (grad[1].needed) {  // g^T x
      Tensor to = grad[1].into(beta);
      gemm(transposed(g), saved_rows, to, beta);
    } else
      grad[1].none();
    if (grad[0].needed) {  // g W
      Tensor to = grad[0].into(beta);
      gemm(g, w, as_matrix(to), beta);
    } else
      grad[0].none();
  });
}

PUPIL_SAMPLES(linear) {
  auto f = [](auto& v) { return linear(v[0], v[1], v.size() > 2 ? v[2] : Tensor()); };
  s.add("matrix", {{5, 4}, {3, 4}, {3}}, f);
  s.add("tokens without bias", {{2, 5, 4}, {6, 4}}, f);
  s.add("vector", {{4}, {3, 4}, {3}}, f);
  s.add("one", {{1, 1}, {1, 1}, {1}}, f);
  s.add("many rows", {{70, 33}, {19, 33}, {19}}, f);
  s.add("empty", {{0, 4}, {3, 4}, {3}}, f);
  s.add("empty batch of tokens", {{0, 5, 4}, {3, 4}, {3}}, f);
  s.add("permuted", {{5, 2, 4}, {3, 4}, {3}}, [](auto& v) {
    return linear(permute(v[0], {1, 0, 2}), v[1], v[2]);
  });
  s.add("first token", {{3, 5, 4}, {6, 4}, {6}},
        [](auto& v) { return linear(slice(v[0], 1, 0, 1), v[1], v[2]); });
  s.add("transposed weight", {{5, 4}, {4, 3}, {3}}, [](auto& v) {
    return linear(v[0], permute(v[1], {1, 0}), v[2]);
  });
  s.add_error("width", {{5, 4}, {3, 5}, {3}}, f);
  s.add_error("bias", {{5, 4}, {3, 4}, {4}}, f);
}

}  // namespace pupil
