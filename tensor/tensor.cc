#include "tensor.h"

#include <ostream>

#include "launch.h"
#include "memory.h"
#include "onednn.h"

namespace pupil {
namespace {

// Where element (n, c, h, w) of an image lies: at n*outer + (c/block)*step + (h*W + w)*inner +
// c%block.
struct ImageIndex {
  int64_t channels, pixels, block, outer, step, inner;
  ImageIndex(const Shape& s, Layout layout)
      : channels(s.dims[1]), pixels(s.dims[2] * s.dims[3]), outer(channels * pixels) {
    block = layout == Layout::nhwc ? channels : layout == Layout::nchw16c ? 16 : 1;
    inner = block;
    step = pixels * block;
  }
  int64_t operator()(int64_t i) const {  // i: row-major (n, c, pixel)
    int64_t pixel = i % pixels, c = i / pixels % channels, n = i / pixels / channels;
    return n * outer + c / block * step + pixel * inner + c % block;
  }
};

template <class F>
auto dispatch_any(DType dtype, F&& f) {
  switch (dtype) {
    case DType::i64:
      return f(tag<int64_t>{});
    case DType::i32:
      return f(tag<int32_t>{});
    case DType::u8:
      return f(tag<uint8_t>{});
    default:
      return dispatch(dtype, f);
  }
}

template <class To, class From>
To convert(From v) {
  if constexpr (std::is_same_v<To, bf16>)
    return bf16(float(v));
  else if constexpr (std::is_same_v<From, bf16>)
    return To(float(v));
  else
    return To(v);
}

// A product that overflows would make a tensor that is larger than its memory.
size_t bytes_of(const Shape& shape, DType dtype) {
  int64_t bytes = int64_t(size_of(dtype));
  for (int d = 0; d < shape.rank; d++)
    PUPIL_CHECK(shape.dims[d] >= 0 && !__builtin_mul_overflow(bytes, shape.dims[d], &bytes),
                "no tensor has the shape ", shape);
  return size_t(bytes);
}

Tensor make(const Shape& shape, DType dtype, Device device, Layout layout) {
  auto storage = std::make_shared<Storage>();
  Arena& arena = Arena::current(device);
  storage->bytes = bytes_of(shape, dtype);
  storage->device = device;
  storage->data = arena.get(storage->bytes);
  storage->arena = &arena;
  arena.label(storage->data, shape, dtype, "");
  auto impl = std::make_shared<TensorImpl>();
  impl->storage = std::move(storage);
  impl->shape = shape;
  impl->strides = row_major_strides(shape);
  impl->dtype = dtype;
  impl->layout = layout;
  return Tensor(std::move(impl));
}

template <class T>
struct Fill {
  T* to;
  // A kernel takes its arguments as bytes; the assignment of bf16 is written out (see core.h).
  std::conditional_t<std::is_same_v<T, bf16>, float, T> value;
  PUPIL_HD void operator()(int64_t i) const { to[i] = T(value); }
};

// The elements of a dense image as a row, in the order of its memory.
Tensor in_memory_order(const Tensor& image) { return alias(image, {image.numel()}, {1}); }

bool dense(const Tensor& t) { return t.layout() != Layout::strided || t.is_contiguous(); }

#if PUPIL_CUDA
void copy_bytes(void* to, const void* from, size_t bytes) {
  cudaError_t e = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, cuda_stream());
  if (e == cudaSuccess) e = cudaStreamSynchronize(cuda_stream());
  PUPIL_CHECK(e == cudaSuccess, "copy between devices: ", cudaGetErrorName(e));
}
#endif

// Element-by-element copy on the device of both tensors.
template <class To, class From>
struct StridedCopy {
  To* to;
  const From* from;
  PUPIL_HD void operator()(int64_t, const int64_t (&at)[2]) const {
    to[at[0]] = To(acc_t<To>(from[at[1]]));
  }
};

}  // namespace

#if PUPIL_CUDA
cudaStream_t cuda_stream() {
  static cudaStream_t stream = [] {
    cudaStream_t s = nullptr;
    cudaError_t e = cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
    PUPIL_CHECK(e == cudaSuccess, "no CUDA stream: ", cudaGetErrorName(e));
    return s;
  }();
  return stream;
}
#endif

bool Tensor::is_contiguous() const {
  if (layout() != Layout::strided) return false;
  int64_t expected = 1;
  for (int d = rank() - 1; d >= 0; d--) {
    if (dim(d) != 1 && strides().dims[d] != expected) return false;
    expected *= dim(d);
  }
  return true;
}

Tensor empty(const Shape& shape, DType dtype, Device device) {
  return make(shape, dtype, device, Layout::strided);
}

Tensor empty_image(const Shape& nchw, DType dtype, Layout layout) {
  PUPIL_CHECK(nchw.rank == 4, "empty_image: (n,c,h,w) expected, got ", nchw);
  PUPIL_CHECK(layout != Layout::nchw16c || nchw[1] % 16 == 0,
              "empty_image: nchw16c needs a multiple of 16 channels, got ", nchw);
  return make(nchw, dtype, {}, layout);
}

Tensor empty_like(const Tensor& t) { return make(t.shape(), t.dtype(), t.device(), t.layout()); }

Tensor zeros(const Shape& shape, DType dtype, Device device) {
  Tensor t = empty(shape, dtype, device);
#if PUPIL_CUDA
  if (device.is_cuda()) {
    cudaError_t e = cudaMemsetAsync(t.raw(), 0, t.bytes(), cuda_stream());
    PUPIL_CHECK(e == cudaSuccess, "zeros: ", cudaGetErrorName(e));
    return t;
  }
#endif
  memset(t.raw(), 0, t.bytes());
  return t;
}

Tensor full(const Shape& shape, double value, DType dtype, Device device) {
  Tensor t = empty(shape, dtype, device);
  dispatch_any(dtype, [&](auto g) {
    using T = typename decltype(g)::type;
    map(device, t.numel(), Fill<T>{t.data<T>(), convert<decltype(Fill<T>::value)>(value)});
  });
  return t;
}

Tensor from(std::span<const float> values, const Shape& shape) {
  PUPIL_CHECK(int64_t(values.size()) == shape.numel(), "from: ", values.size(), " values for ",
              shape);
  Tensor t = empty(shape);
  std::copy(values.begin(), values.end(), t.data<float>());
  return t;
}
Tensor from(std::span<const double> values, const Shape& shape, DType dtype) {
  PUPIL_CHECK(int64_t(values.size()) == shape.numel(), "from: ", values.size(), " values for ",
              shape);
  Tensor t = empty(shape, DType::f64);
  std::copy(values.begin(), values.end(), t.data<double>());
  return t.to(dtype);
}
Tensor from(std::span<const int64_t> values, const Shape& shape) {
  PUPIL_CHECK(int64_t(values.size()) == shape.numel(), "from: ", values.size(), " values for ",
              shape);
  Tensor t = empty(shape, DType::i64);
  std::copy(values.begin(), values.end(), t.data<int64_t>());
  return t;
}

Tensor map_memory(void* data, const Shape& shape, DType dtype, std::shared_ptr<void> keep_alive) {
  auto storage = std::make_shared<Storage>();
  storage->data = data;
  storage->bytes = bytes_of(shape, dtype);
  storage->keep_alive = std::move(keep_alive);
  auto impl = std::make_shared<TensorImpl>();
  impl->storage = std::move(storage);
  impl->shape = shape;
  impl->strides = row_major_strides(shape);
  impl->dtype = dtype;
  return Tensor(std::move(impl));
}

Tensor alias(const Tensor& t, const Shape& shape, const Shape& strides, int64_t offset_elements) {
  auto impl = std::make_shared<TensorImpl>();
  impl->storage = t.impl()->storage;
  impl->offset = t.impl()->offset + offset_elements * int64_t(size_of(t.dtype()));
  impl->shape = shape;
  impl->strides = strides;
  impl->dtype = t.dtype();
  impl->name = t.name();
  return Tensor(std::move(impl));
}

Tensor Tensor::detach() const {
  auto impl = std::make_shared<TensorImpl>(*impl_);
  impl->node.reset();
  impl->grad.reset();
  impl->grad_is_set = false;
  impl->requires_grad = false;
  return Tensor(std::move(impl));
}

void Tensor::zero_grad() {
  impl_->grad.reset();
  impl_->grad_is_set = false;
}

void copy_into(const Tensor& to, const Tensor& from) {
  PUPIL_CHECK(to.shape() == from.shape(), "copy_into: ", from.shape(), " into ", to.shape());
  PUPIL_CHECK(to.device() == from.device(), "copy_into: tensors on different devices");
  if (to.numel() == 0) return;
#if PUPIL_CUDA
  if (to.device().is_cuda() && to.dtype() == from.dtype() && dense(to) && dense(from)) {
    cudaError_t e =
        cudaMemcpyAsync(to.raw(), from.raw(), to.bytes(), cudaMemcpyDeviceToDevice, cuda_stream());
    PUPIL_CHECK(e == cudaSuccess, "copy_into: ", cudaGetErrorName(e));
    return;
  }
#endif
  if (to.device().is_cuda()) {
    dispatch(to.dtype(), [&](auto a) {
      dispatch(from.dtype(), [&](auto b) {
        using To = typename decltype(a)::type;
        using From = typename decltype(b)::type;
        const Tensor* both[2] = {&to, &from};
        map_nd("copy", to.device(), to.shape(), both,
               StridedCopy<To, From>{to.data<To>(), from.data<From>()});
      });
    });
    return;
  }
  if (to.dtype() == from.dtype() && to.layout() == from.layout() && dense(to) && dense(from)) {
    constexpr int64_t kPiece = 1 << 16;
    char* p = static_cast<char*>(to.raw());
    const char* q = static_cast<const char*>(from.raw());
    int64_t bytes = int64_t(to.bytes());
    parallel_for((bytes + kPiece - 1) / kPiece, bytes / 4, [=](int64_t k) {
      memcpy(p + k * kPiece, q + k * kPiece, size_t(std::min(kPiece, bytes - k * kPiece)));
    });
    return;
  }
  bool small = to.dtype() == DType::f32 || to.dtype() == DType::bf16;
  if (to.layout() != from.layout() && to.dtype() == from.dtype() && dense(to) && dense(from) &&
      small && !plain_mode() && onednn::convert_layout(from, to))
    return;
  if (to.layout() == from.layout() && to.layout() != Layout::strided && dense(to) && dense(from))
    return copy_into(in_memory_order(to), in_memory_order(from));
  dispatch_any(to.dtype(), [&](auto a) {
    dispatch_any(from.dtype(), [&](auto b) {
      using To = typename decltype(a)::type;
      using From = typename decltype(b)::type;
      To* p = static_cast<To*>(to.raw());
      const From* q = static_cast<const From*>(from.raw());
      int64_t n = to.numel();
      if (to.layout() == Layout::strided && from.layout() == Layout::strided) {
        const Tensor* both[2] = {&to, &from};
        NdIndex<2> index = coalesce(broadcast_index("copy", to.shape(), both));
        int64_t to_step = index.strides[0][index.rank - 1];
        int64_t from_step = index.strides[1][index.rank - 1];
        cpu_runs(index, [=](const int64_t(&at)[2], int64_t, int64_t n) {
          To* out = p + at[0];
          const From* in = q + at[1];
          if (to_step == 1 && from_step == 1)
            for (int64_t i = 0; i < n; i++) out[i] = convert<To>(in[i]);
          else if (to_step == 1 && from_step == 0)
            std::fill_n(out, n, convert<To>(*in));
          else
            for (int64_t i = 0; i < n; i++) out[i * to_step] = convert<To>(in[i * from_step]);
        });
      } else {
        PUPIL_CHECK(dense(to) && dense(from), "copy: an image layout needs contiguous tensors");
        ImageIndex to_at(to.shape(), to.layout()), from_at(from.shape(), from.layout());
        parallel_for(n, n, [=](int64_t i) { p[to_at(i)] = convert<To>(q[from_at(i)]); });
      }
    });
  });
}

Tensor Tensor::to(Device target) const {
  if (target == device()) return *this;
#if PUPIL_CUDA
  Tensor source = contiguous(), t = empty(shape(), dtype(), target);
  copy_bytes(t.raw(), source.raw(), t.bytes());
  return t;
#else
  fail_input("device cuda: this program was built without CUDA; use --device cpu");
#endif
}

Tensor Tensor::to(DType target) const {
  if (target == dtype()) return detach();
  Tensor t = make(shape(), target, device(), layout());
  Tensor source = layout() == Layout::strided ? *this : detach();
  copy_into(t, source);
  return t;
}

Tensor Tensor::to(Layout target) const {
  if (target == layout()) return *this;
  if (target == Layout::strided) return contiguous();
  Tensor t = empty_image(shape(), dtype(), target);
  copy_into(t, layout() == Layout::strided ? contiguous() : *this);
  return t;
}

Tensor Tensor::contiguous() const { return is_contiguous() ? *this : clone(); }

Tensor Tensor::clone() const {
  Tensor t = make(shape(), dtype(), device(), Layout::strided);
  copy_into(t, *this);
  return t;
}

double Tensor::item() const {
  PUPIL_CHECK(numel() == 1, "item() on a tensor of shape ", shape());
  return values()[0];
}

std::vector<double> Tensor::values() const {
  Tensor host = contiguous().to(Device{});
  std::vector<double> out(size_t(host.numel()));
  dispatch_any(dtype(), [&](auto g) {
    using T = typename decltype(g)::type;
    const T* p = host.data<T>();
    for (size_t i = 0; i < out.size(); i++) out[i] = convert<double>(p[i]);
  });
  return out;
}

std::ostream& operator<<(std::ostream& out, const Tensor& t) {
  if (!t) return out << "Tensor()";
  out << (t.name().empty() ? "Tensor" : t.name()) << t.shape() << " " << name_of(t.dtype()) << " [";
  std::vector<double> v = t.values();
  for (size_t i = 0; i < v.size() && i < 8; i++) out << (i ? ", " : "") << v[i];
  return out << (v.size() > 8 ? ", ...]" : "]");
}

}  // namespace pupil
