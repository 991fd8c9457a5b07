#include "linear.h"

#include <optional>

#include "../../autograd/samples.h"
#include "../launch.h"
#include "broadcast.h"

namespace pupil {

onednn::RowsDone add_residual(const Tensor& y, const Tensor& residual) {
  if (!residual) return {};
  auto adder = [&](auto t) -> onednn::RowsDone {
    using T = typename decltype(t)::type;
    AddInto<T> f{y.data<T>(), residual.data<T>()};
    int64_t width = y.dim(1);
    return [=](int64_t begin, int64_t end) { map_here(begin * width, end * width, f); };
  };
  return y.dtype() == DType::bf16 ? adder(tag<bf16>{}) : adder(tag<float>{});
}

Shape check_linear(const char* op, const Shape& x, DType dtype, const Tensor& weight,
                   const Tensor& bias, const Tensor& residual) {
  PUPIL_CHECK(x.rank >= 1 && weight.rank() == 2 && x[-1] == weight.dim(1) &&
                  (!bias || (bias.rank() == 1 && bias.dim(0) == weight.dim(0))),
              op, ": x ", x, ", weight ", weight.shape(), ", bias ", bias ? bias.shape() : Shape{});
  PUPIL_CHECK((weight.dtype() == dtype || weight.dtype() == acc_dtype(dtype)) &&
                  (!bias || bias.dtype() == weight.dtype()),
              op, ": x is ", name_of(dtype), ", weight ", name_of(weight.dtype()));
  Shape shape = x;
  shape[-1] = weight.dim(0);
  PUPIL_CHECK(!residual || (residual.shape() == shape && residual.dtype() == dtype), op,
              ": residual ", residual ? residual.shape() : Shape{}, " ",
              residual ? name_of(residual.dtype()) : "", " for a result ", shape, " ",
              name_of(dtype));
  return shape;
}

void linear_backward(const Tensor& g, const Tensor& x, const Tensor& weight, Grad& of_weight,
                     Grad* of_bias, const Tensor& gx, float beta, const onednn::RowsDone& done) {
  bool sums = of_bias && of_bias->needed;
  bool rides = sums && gx && cpu_fast(acc_dtype(g.dtype()), g.device());
  std::optional<ColumnSums> columns;
  if (rides) columns.emplace(g);
  onednn::RowsDone both = [&](int64_t begin, int64_t end) {
    columns->add(begin, end);
    if (done) done(begin, end);
  };
  if (gx) gemm(g, weight, gx, beta, {}, rides ? both : done);
  float beta_of_sum;
  if (sums) {
    Tensor to = of_bias->into(beta_of_sum);
    rides ? columns->finish(to, beta_of_sum) : column_sum(g, to, beta_of_sum);
  } else if (of_bias)
    of_bias->none();
  if (of_weight.needed) {  // g^T x
    Tensor to = of_weight.into(beta_of_sum);
    gemm(transposed(g), x, to, beta_of_sum);
  } else
    of_weight.none();
}

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& residual) {
  require_floating("linear", x);
  Shape shape = check_linear("linear", x.shape(), x.dtype(), weight, bias, residual);
  if (residual && (!cpu_fast(acc_dtype(x.dtype()), x.device()) || observed()))
    return add(residual, linear(x, weight, bias));
  Tensor y = empty(shape, x.dtype(), x.device());
  Tensor rows = as_matrix(x), w = weight.to(x.dtype());
  Tensor summand = residual ? as_matrix(residual.contiguous()) : residual;
  gemm(rows, transposed(w), as_matrix(y), 0, bias ? bias.contiguous() : bias,
       add_residual(as_matrix(y), summand));
  Tensor saved_rows = weight.requires_grad() ? rows : Tensor();
  if (!x.requires_grad()) w = Tensor();
  std::vector<Tensor> inputs{x, weight};
  if (bias) inputs.push_back(bias);
  if (residual) inputs.push_back(residual);
  bool has_bias = bool(bias), has_residual = bool(residual);
  return record("linear", y, inputs, [=](Backward& grad) {
    if (has_residual) grad.inputs.back().give(grad.gy);
    float beta = 0;
    Tensor gx = grad[0].needed ? grad[0].into(beta) : Tensor();
    if (!gx) grad[0].none();
    linear_backward(as_matrix(grad.gy), saved_rows, w, grad[1], has_bias ? &grad[2] : nullptr,
                    gx ? as_matrix(gx) : gx, beta);
  });
}

PUPIL_SAMPLES(linear) {
  auto f = [](auto& v) { return linear(v[0], v[1], v.size() > 2 ? v[2] : Tensor()); };
  auto plus = [](auto& v) { return linear(v[0], v[1], v[2], v[3]); };
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
  s.add("residual", {{2, 5, 4}, {6, 4}, {6}, {2, 5, 6}}, plus);
  s.add("many rows and a residual", {{300, 33}, {19, 33}, {19}, {300, 19}}, plus);
  s.add("residual alone", {{5, 4}, {3, 4}, {5, 3}},
        [](auto& v) { return linear(v[0], v[1], {}, v[2]); });
  s.add("its own input", {{5, 4}, {4, 4}, {4}},
        [](auto& v) { return linear(v[0], v[1], v[2], v[0]); });
  s.add("permuted residual", {{3, 2, 4}, {6, 4}, {6}, {2, 3, 6}}, [](auto& v) {
    return linear(v[0], v[1], v[2], permute(v[3], {1, 0, 2}));
  });
  s.add("its own weight", {{4, 4}}, [](auto& v) { return linear(v[0], v[0], {}); });
  s.add("no width", {{5, 0}, {3, 0}, {3}}, f);
  s.add_error("residual", {{5, 4}, {3, 4}, {3}, {3}}, plus);
  s.add_error("width", {{5, 4}, {3, 5}, {3}}, f);
  s.add_error("bias", {{5, 4}, {3, 4}, {4}}, f);
}

}  // namespace pupil
