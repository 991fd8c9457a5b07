// Tensor: a value type. Copying shares, nothing is lazy, views are views.
#pragma once
#include "core.h"

namespace pupil {

class Arena;
struct Node;  // autograd.h

// One block of memory; freed to its arena when the last tensor that looks at it goes.
struct Storage {
  void* data = nullptr;
  size_t bytes = 0;
  Device device;
  Arena* arena = nullptr;            // null: `keep_alive` owns the memory
  std::shared_ptr<void> keep_alive;  // a mapped file, for example
  ~Storage();
};

struct TensorImpl {
  std::shared_ptr<Storage> storage;
  int64_t offset = 0;  // in bytes
  Shape shape;
  Shape strides;  // in elements; meaningless unless layout is strided
  DType dtype = DType::f32;
  Layout layout = Layout::strided;
  std::shared_ptr<Node> node;  // the op that made it, if a gradient flows through it
  bool requires_grad = false;
  std::shared_ptr<TensorImpl> grad;
  bool grad_is_set = false;  // false: `grad` is an optimizer's buffer with last step's values
  std::string name;
};

class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(std::shared_ptr<TensorImpl> impl) : impl_(std::move(impl)) {}
  explicit operator bool() const { return bool(impl_); }

  const Shape& shape() const { return impl_->shape; }
  const Shape& strides() const { return impl_->strides; }
  int64_t dim(int i) const { return impl_->shape[i]; }
  int64_t numel() const { return impl_->shape.numel(); }
  int rank() const { return impl_->shape.rank; }
  DType dtype() const { return impl_->dtype; }
  Device device() const { return impl_->storage->device; }
  Layout layout() const { return impl_->layout; }
  const std::string& name() const { return impl_->name; }

  // True when element i of the row-major order lies at data()[i]. False for other layouts.
  bool is_contiguous() const;

  // The first element. Checks the dtype, never the device.
  template <class T>
  T* data() const {
    PUPIL_CHECK(dtype_of<T>::value == dtype(), "data: tensor ", name(), shape(), " is ",
                name_of(dtype()), ", asked for ", name_of(dtype_of<T>::value));
    return static_cast<T*>(raw());
  }
  void* raw() const { return static_cast<char*>(impl_->storage->data) + impl_->offset; }
  size_t bytes() const { return size_t(numel()) * size_of(dtype()); }

  // Copies without a graph; the same tensor when nothing changes.
  Tensor to(Device) const;
  Tensor to(DType) const;
  Tensor contiguous() const;  // strided layout, row-major; itself when already so
  Tensor to(Layout) const;    // images (n,c,h,w) on the CPU
  Tensor clone() const;       // a contiguous copy, always new memory

  double item() const;                 // a tensor of one element, read on the host
  std::vector<double> values() const;  // all elements in row-major order, read on the host

  bool requires_grad() const { return impl_ && (impl_->requires_grad || impl_->node); }
  Tensor& requires_grad_(bool value = true) {
    impl_->requires_grad = value;
    return *this;
  }
  // The gradient of a leaf after backward(); empty when none arrived.
  Tensor grad() const { return impl_->grad_is_set ? Tensor(impl_->grad) : Tensor(); }
  void zero_grad();
  Tensor detach() const;  // the same memory without a graph
  Tensor& named(std::string name) {
    impl_->name = std::move(name);
    return *this;
  }

  // True when nobody else sees this memory: an op may write its result here.
  bool sole_owner() const {
    return impl_.use_count() == 1 && impl_->storage.use_count() == 1 && impl_->storage->arena;
  }

  TensorImpl* impl() const { return impl_.get(); }
  const std::shared_ptr<TensorImpl>& pointer() const { return impl_; }

 private:
  std::shared_ptr<TensorImpl> impl_;
};

// New tensors come from the step arena inside a StepScope, else from the model arena (memory.h).
Tensor empty(const Shape&, DType = DType::f32, Device = {});
Tensor empty_image(const Shape& nchw, DType, Layout);  // CPU; nchw16c needs channels % 16 == 0
Tensor empty_like(const Tensor&);                      // same shape, dtype, device and layout
Tensor zeros(const Shape&, DType = DType::f32, Device = {});
Tensor full(const Shape&, double value, DType = DType::f32, Device = {});
Tensor from(std::span<const float>, const Shape&);
Tensor from(std::span<const double>, const Shape&, DType = DType::f64);
Tensor from(std::span<const int64_t>, const Shape&);
Tensor map_memory(void* data, const Shape&, DType, std::shared_ptr<void> keep_alive);

// A view of the same memory with other geometry; no graph (the ops view, permute, slice record
// one).
Tensor alias(const Tensor&, const Shape& shape, const Shape& strides, int64_t offset_elements = 0);

void copy_into(const Tensor& to, const Tensor& from);  // same shape; any strides, dtype, layout

std::ostream& operator<<(std::ostream&, const Tensor&);  // shape, dtype and the first values

}  // namespace pupil
