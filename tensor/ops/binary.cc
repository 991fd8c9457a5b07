// Elementwise arithmetic of two tensors. On the CPU the common shape is reduced to runs along which
// each operand either advances by one or stays, so that the inner loop needs no index arithmetic.
#include "../../autograd/samples.h"
#include "../launch.h"
#include "broadcast.h"
#include "image.h"

namespace pupil {

struct Subtract {
  template <class A>
  PUPIL_HD A operator()(A a, A b) const {
    return a - b;
  }
};
struct Multiply {
  template <class A>
  PUPIL_HD A operator()(A a, A b) const {
    return a * b;
  }
};
struct Divide {
  template <class A>
  PUPIL_HD A operator()(A a, A b) const {
    return a / b;
  }
};

// The share of the gradient of Choose that goes to a.
template <bool largest>
struct Share {
  template <class A>
  PUPIL_HD A operator()(A a, A b) const {
    return a == b ? A(0.5) : (largest ? a < b : a > b) ? A(0) : A(1);
  }
};

template <class F, class T>
struct BinaryMap {
  F f;
  const T *a, *b;
  T* y;
  PUPIL_HD void operator()(int64_t i, const int64_t (&at)[2]) const {
    y[i] = T(f(acc_t<T>(a[at[0]]), acc_t<T>(b[at[1]])));
  }
};

namespace {

// y[i] = f(a[i * step_a], b[i * step_b]) with the steps known when the loop is compiled.
template <int step_a, int step_b, class F, class T>
void run(F f, const T* a, const T* b, T* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) y[i] = T(f(acc_t<T>(a[i * step_a]), acc_t<T>(b[i * step_b])));
}

template <class F, class T>
void cpu_binary(F f, const NdIndex<2>& index, const T* a, const T* b, T* y) {
  int64_t step_a = index.strides[0][index.rank - 1], step_b = index.strides[1][index.rank - 1];
  cpu_runs(index, [=](const int64_t(&at)[2], int64_t first, int64_t n) {
    const T *p = a + at[0], *q = b + at[1];
    T* out = y + first;
    if (step_a == 1 && step_b == 1)
      run<1, 1>(f, p, q, out, n);
    else if (step_a == 1 && step_b == 0)
      run<1, 0>(f, p, q, out, n);
    else if (step_a == 0 && step_b == 1)
      run<0, 1>(f, p, q, out, n);
    else
      for (int64_t i = 0; i < n; i++)
        out[i] = T(f(acc_t<T>(p[i * step_a]), acc_t<T>(q[i * step_b])));
  });
}

// Not recorded. Images of one layout and shape are combined in place of their memory, and so is an
// image with a value for every channel.
template <class F>
Tensor binary_map(const char* op, const Tensor& a, const Tensor& b, F f = {}) {
  require_floating(op, a);
  PUPIL_CHECK(a.dtype() == b.dtype(), op, ": ", a.shape(), " ", name_of(a.dtype()), " and ",
              b.shape(), " ", name_of(b.dtype()), " have different dtypes");
  PUPIL_CHECK(a.device() == b.device(), op, ": tensors on different devices");
  bool images = a.layout() != Layout::strided && a.layout() == b.layout() && a.shape() == b.shape();
  bool gated = a.layout() != Layout::strided && b.layout() == Layout::strided &&
               b.shape() == Shape{a.dim(0), a.dim(1), 1, 1};
  if (!images && !gated && (a.layout() != Layout::strided || b.layout() != Layout::strided))
    return binary_map(op, a.contiguous(), b.contiguous(), f);
  NdIndex<2> index;
  Tensor y, gate;
  if (images) {
    y = empty_like(a);
    index.rank = 1;
    index.dims[0] = a.numel();
    index.strides[0][0] = index.strides[1][0] = 1;
  } else if (gated) {
    y = empty_like(a);
    Tensor image = memory_of(a, a.layout());
    gate = memory_of(b.contiguous(), a.layout());
    const Tensor* both[2] = {&image, &gate};
    index = coalesce(broadcast_index(op, image.shape(), both));
  } else {
    Shape shape = broadcast_shape(op, a.shape(), b.shape());
    y = empty(shape, a.dtype(), a.device());
    const Tensor* both[2] = {&a, &b};
    index = coalesce(broadcast_index(op, shape, both));
  }
  const Tensor& right = gate ? gate : b;
  dispatch(a.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    const T *p = a.data<T>(), *q = right.data<T>();
    if (y.device().is_cuda())
      map(y.device(), y.numel(), MapNd<2, BinaryMap<F, T>>{index, {f, p, q, y.data<T>()}});
    else
      cpu_binary(f, index, p, q, y.data<T>());
  });
  return y;
}

void give_sum(Grad& grad, const Tensor& g, const Shape& shape) {
  if (grad.needed)
    grad.give(sum_to(g, shape));
  else
    grad.none();
}

}  // namespace

Shape broadcast_shape(const char* op, const Shape& a, const Shape& b) {
  Shape out;
  out.rank = std::max(a.rank, b.rank);
  for (int d = 1; d <= out.rank; d++) {
    int64_t p = d <= a.rank ? a[-d] : 1, q = d <= b.rank ? b[-d] : 1;
    PUPIL_CHECK(p == q || p == 1 || q == 1, op, ": cannot broadcast ", a, " with ", b);
    out[-d] = p == 1 ? q : p;
  }
  return out;
}

void require_floating(const char* op, const Tensor& x) {
  PUPIL_CHECK(is_floating(x.dtype()) && x.dtype() != DType::f16, op,
              ": f64, f32 or bf16 expected, ", "got ", x.shape(), " ", name_of(x.dtype()));
}

Tensor add(const Tensor& a, const Tensor& b) {
  Shape sa = a.shape(), sb = b.shape();
  return record("add", binary_map<Add>("add", a, b), {a, b}, [sa, sb](Backward& g) {
    give_sum(g[0], g.gy, sa);
    give_sum(g[1], g.gy, sb);
  });
}

Tensor sub(const Tensor& a, const Tensor& b) {
  Shape sa = a.shape(), sb = b.shape();
  return record("sub", binary_map<Subtract>("sub", a, b), {a, b}, [sa, sb](Backward& g) {
    give_sum(g[0], g.gy, sa);
    if (g[1].needed)
      g[1].give(scale(sum_to(g.gy, sb), -1));
    else
      g[1].none();
  });
}

Tensor mul(const Tensor& a, const Tensor& b) {
  Tensor y = binary_map<Multiply>("mul", a, b);
  Tensor saved_a = b.requires_grad() ? a.detach() : Tensor();
  Tensor saved_b = a.requires_grad() ? b.detach() : Tensor();
  Shape sa = a.shape(), sb = b.shape();
  return record("mul", y, {a, b}, [saved_a, saved_b, sa, sb](Backward& g) {
    if (g[0].needed)
      g[0].give(sum_to(binary_map<Multiply>("mul", g.gy, saved_b), sa));
    else
      g[0].none();
    if (g[1].needed)
      g[1].give(sum_to(binary_map<Multiply>("mul", g.gy, saved_a), sb));
    else
      g[1].none();
  });
}

Tensor div(const Tensor& a, const Tensor& b) {
  Tensor y = binary_map<Divide>("div", a, b);
  Tensor saved_b = b.detach(), saved_y = b.requires_grad() ? y.detach() : Tensor();
  Shape sa = a.shape(), sb = b.shape();
  return record("div", y, {a, b}, [saved_b, saved_y, sa, sb](Backward& g) {
    Tensor ga = binary_map<Divide>("div", g.gy, saved_b);
    if (g[1].needed)  // d(a/b)/db = -(a/b)/b
      g[1].give(scale(sum_to(binary_map<Multiply>("div", ga, saved_y), sb), -1));
    else
      g[1].none();
    give_sum(g[0], ga, sa);
  });
}

namespace {

template <bool largest>
Tensor choose(const char* op, const Tensor& a, const Tensor& b) {
  Tensor x = a.detach(), y = b.detach();
  return record(op, binary_map<Choose<largest>>(op, a, b), {a, b}, [op, x, y](Backward& g) {
    auto give = [&](Grad& grad, const Tensor& to, const Tensor& other) {
      if (!grad.needed) return grad.none();
      Tensor share = binary_map<Share<largest>>(op, to, other);
      grad.give(sum_to(binary_map<Multiply>(op, g.gy, share), to.shape()));
    };
    give(g[0], x, y);
    give(g[1], y, x);
  });
}

}  // namespace

Tensor maximum(const Tensor& a, const Tensor& b) { return choose<true>("maximum", a, b); }
Tensor minimum(const Tensor& a, const Tensor& b) { return choose<false>("minimum", a, b); }

namespace {

[[maybe_unused]] void binary_samples(auto& s, Tensor (*f)(const Tensor&, const Tensor&)) {
  auto call = [f](auto& v) { return f(v[0], v[1]); };
  test::SampleOptions positive{.low = 0.5, .high = 2};  // div: away from 0
  s.add("same", {{4, 3}, {4, 3}}, call, positive);
  s.add("bias", {{300, 3}, {3}}, call, positive);
  s.add("long bias", {{5, 67}, {67}}, call, positive);
  s.add("left bias", {{3}, {4, 3}}, call, positive);
  s.add("column", {{4, 1}, {4, 3}}, call, positive);
  s.add("outer", {{4, 1}, {1, 3}}, call, positive);
  s.add("channels", {{2, 3, 2, 2}, {3, 1, 1}}, call, positive);
  s.add("middle", {{2, 1, 3}, {1, 4, 1}}, call, positive);
  s.add("scalar right", {{4, 3}, {}}, call, positive);
  s.add("scalars", {{}, {}}, call, positive);
  s.add("one element", {{1}, {1, 1}}, call, positive);
  s.add("empty", {{0, 3}, {3}}, call, positive);
  s.add("empty columns", {{2, 0}, {2, 1}}, call, positive);
  s.add(
      "twice the same", {{4, 3}}, [f](auto& v) { return f(v[0], v[0]); }, positive);
  s.add(
      "transposed", {{3, 4}, {4, 3}},
      [f](auto& v) {
        return f(permute(v[0], {1, 0}), v[1]);
      },
      positive);
  s.add("long", {{9001}, {9001}}, call, positive);
  s.add_error("shapes", {{2, 3}, {2, 4}}, call);
  s.add_error("integers", {{3}, {3}},
              [f](auto& v) { return f(v[0].to(DType::i64), v[1].to(DType::i64)); });
  s.add_error("dtypes", {{3}, {3}}, [f](auto& v) { return f(v[0], to_dtype(v[1], DType::bf16)); });
}

}  // namespace

PUPIL_SAMPLES(add) { binary_samples(s, add); }
PUPIL_SAMPLES(sub) { binary_samples(s, sub); }
PUPIL_SAMPLES(mul) {
  binary_samples(s, mul);
  for (int64_t c : {32, 20})  // an image in a layout, of 2 samples and of 1
    for (int64_t n : {2, 1})
      s.add(concat("gate ", n, " ", c), {{n, 3, 6, 5}, {c, 3, 3, 3}, {n, c, 1, 1}}, [](auto& v) {
        return to_strided(mul(conv2d(v[0], v[1], Tensor(), {1, 1}), v[2]));
      });
}
PUPIL_SAMPLES(div) { binary_samples(s, div); }
PUPIL_SAMPLES(maximum) { binary_samples(s, maximum); }
PUPIL_SAMPLES(minimum) { binary_samples(s, minimum); }

}  // namespace pupil
