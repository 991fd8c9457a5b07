// The two layers of a transformer's MLP (Vaswani et al. 2017, arXiv 1706.03762, section 3.3) as one
// op: what lies between its products is done on rows that are still in the cache.
#include "gelu.h"
#include "linear.h"
#include "swish.h"
#include "unary.h"

namespace pupil {

// x becomes the activation's value, g, its cotangent, that of x.
template <class F, class T>
struct BackwardAndValue {
  static constexpr bool widest = true;
  static_assert(F::widest && F::saves_x && !F::saves_y);
  F f;
  T *x, *g;
  PUPIL_HD void operator()(int64_t i) const {
    using A = acc_t<T>;
    A value = A(x[i]);
    g[i] = T(f.bwd(value, A(0), A(g[i])));
    x[i] = T(f.fwd(value));
  }
};

namespace {

using onednn::RowsDone;

template <class F, class T>
RowsDone forward_rows(const Tensor& x, const Tensor& y) {
  UnaryForward<F, T> f{F{}, x.data<T>(), y.data<T>()};
  int64_t width = x.dim(1);
  return [=](int64_t begin, int64_t end) { map_here(begin * width, end * width, f); };
}

template <class F, class T>
RowsDone backward_rows(const Tensor& x, const Tensor& g) {
  BackwardAndValue<F, T> f{F{}, x.data<T>(), g.data<T>()};
  int64_t width = x.dim(1);
  return [=](int64_t begin, int64_t end) { map_here(begin * width, end * width, f); };
}

struct Rowwise {
  RowsDone (*forward)(const Tensor& x, const Tensor& y) = nullptr;
  RowsDone (*backward)(const Tensor& x, const Tensor& g) = nullptr;
};

template <class F>
Rowwise rowwise(DType dtype) {
  if (dtype == DType::bf16) return {forward_rows<F, bf16>, backward_rows<F, bf16>};
  return {forward_rows<F, float>, backward_rows<F, float>};
}

Rowwise rowwise(Activation activation, DType dtype) {
  switch (activation) {
    case Activation::gelu:
      return rowwise<GeluFast>(dtype);
    case Activation::gelu_tanh:
      return rowwise<GeluTanhFast>(dtype);
    case Activation::quick_gelu:
      return rowwise<SwishFast<true>>(dtype);
    default:
      return {};
  }
}

}  // namespace

Tensor mlp(const Tensor& x, const Tensor& weight1, const Tensor& bias1, Activation activation,
           const Tensor& weight2, const Tensor& bias2, const Tensor& residual) {
  require_floating("mlp", x);
  Shape wide = check_linear("mlp", x.shape(), x.dtype(), weight1, bias1, {});
  Shape shape = check_linear("mlp", wide, x.dtype(), weight2, bias2, residual);
  Rowwise f = rowwise(activation, x.dtype());
  if (!f.forward || !cpu_fast(acc_dtype(x.dtype()), x.device()) || observed())
    return linear(activate(linear(x, weight1, bias1), activation), weight2, bias2, residual);
  bool inner = x.requires_grad() || weight1.requires_grad() || (bias1 && bias1.requires_grad());
  Tensor rows = as_matrix(x), before = empty({rows.dim(0), weight1.dim(0)}, x.dtype());
  Tensor y = empty(shape, x.dtype());  // after the larger one, which finds its place of last time
  Tensor after = inner && grad_enabled() ? empty_like(before) : before;
  Tensor w1 = weight1.to(x.dtype()), w2 = weight2.to(x.dtype());
  Tensor summand = residual ? as_matrix(residual.contiguous()) : residual;
  gemm(rows, transposed(w1), before, 0, bias1 ? bias1.contiguous() : bias1,
       f.forward(before, after));
  gemm(after, transposed(w2), as_matrix(y), 0, bias2 ? bias2.contiguous() : bias2,
       add_residual(as_matrix(y), summand));
  std::vector<Tensor> inputs{x, weight1, weight2};
  for (const Tensor* t : {&bias1, &bias2, &residual})
    if (*t) inputs.push_back(*t);
  int of_bias1 = bias1 ? 3 : 0, of_bias2 = bias2 ? 3 + bool(bias1) : 0;
  bool has_residual = bool(residual);
  if (!weight1.requires_grad()) rows = Tensor();
  if (!x.requires_grad()) w1 = Tensor();
  // The backward makes `after` once more, from what it reads anyway.
  if (inner || !weight2.requires_grad()) after = Tensor();
  if (!inner) before = w2 = Tensor();
  return record("mlp", y, inputs, [=](Backward& grad) mutable {
    auto bias = [&](int which) { return which ? &grad[which] : nullptr; };
    if (has_residual) grad.inputs.back().give(grad.gy);
    Tensor g = before ? empty_like(before) : Tensor();
    linear_backward(as_matrix(grad.gy), before ? before : after, w2, grad[2], bias(of_bias2), g, 0,
                    before ? f.backward(before, g) : RowsDone());
    after = before = Tensor();
    float beta = 0;
    Tensor gx = grad[0].needed ? grad[0].into(beta) : Tensor();
    if (!gx) grad[0].none();
    if (g)
      linear_backward(g, rows, w1, grad[1], bias(of_bias1), gx ? as_matrix(gx) : gx, beta);
    else
      grad[1].none();
    if (!g && of_bias1) grad[of_bias1].none();
  });
}

PUPIL_SAMPLES(mlp) {
  auto act = [](Activation a) {
    return [a](auto& v) { return mlp(v[0], v[1], v[2], a, v[3], v[4], v[5]); };
  };
  std::vector<Shape> small{{5, 4}, {6, 4}, {6}, {3, 6}, {3}, {5, 3}},
      large{{2, 150, 33}, {70, 33}, {70}, {19, 70}, {19}, {2, 150, 19}};
  s.add("matrix", small, act(Activation::gelu));
  s.add("tokens", large, act(Activation::gelu));
  s.add("tanh form", large, act(Activation::gelu_tanh));
  s.add("quick gelu", large, act(Activation::quick_gelu));
  s.add("relu", small, act(Activation::relu), {0.1, 1});
  s.add("no width", {{5, 0}, {6, 0}, {6}, {3, 6}, {3}, {5, 3}}, act(Activation::gelu));
  s.add("empty", {{0, 4}, {6, 4}, {6}, {3, 6}, {3}, {0, 3}}, act(Activation::gelu));
  auto f = [](const Tensor& x, auto& v) {
    return mlp(x, v[1], {}, Activation::gelu, v[2], {}, {});
  };
  s.add("without biases and residual", {{5, 4}, {6, 4}, {3, 6}},
        [f](auto& v) { return f(v[0], v); });
  s.add("one", {{1, 1}, {1, 1}, {1, 1}}, [f](auto& v) { return f(v[0], v); });
  s.add("permuted", {{4, 2, 3}, {6, 3}, {3, 6}}, [f](auto& v) {
    return f(permute(v[0], {1, 0, 2}), v);
  });
  s.add("first token", {{3, 5, 4}, {6, 4}, {3, 6}},
        [f](auto& v) { return f(slice(v[0], 1, 0, 1), v); });
  s.add("its own input", {{5, 4}, {6, 4}, {6}, {4, 6}, {4}},
        [](auto& v) { return mlp(v[0], v[1], v[2], Activation::gelu, v[3], v[4], v[0]); });
  s.add("layers frozen", {{5, 4}, {6, 4}, {6}, {3, 6}, {3}, {5, 3}}, act(Activation::gelu),
        {.constants = {1, 2, 3, 4}});
  s.add("second layer alone", {{5, 4}, {6, 4}, {6}, {3, 6}, {3}, {5, 3}}, act(Activation::gelu),
        {.constants = {0, 1, 2}});
  s.add_error("width", {{5, 4}, {6, 5}, {6}, {3, 6}, {3}, {5, 3}}, act(Activation::gelu));
  s.add_error("second width", {{5, 4}, {6, 4}, {6}, {3, 5}, {3}, {5, 3}}, act(Activation::gelu));
  s.add_error("second width, relu", {{5, 4}, {6, 4}, {6}, {3, 5}, {3}, {5, 3}},
              act(Activation::relu));
  s.add_error("residual", {{5, 4}, {6, 4}, {6}, {3, 6}, {3}, {5, 4}}, act(Activation::gelu));
}

}  // namespace pupil
