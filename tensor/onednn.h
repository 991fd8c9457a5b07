// Matrix products and convolutions of oneDNN on the CPU, float32 or bf16 with float32 sums. Only
// onednn.cc sees its header.
#pragma once
#include <functional>
#include <memory>

#include "tensor.h"

namespace pupil {

// A convolution of (n, c, h, w) images with weights (o, c / groups, kh, kw).
struct ConvGeometry {
  int64_t batch, channels, height, width, outputs, out_height, out_width, kernel_height,
      kernel_width, groups;
  int64_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int64_t group_channels, group_outputs;
};

namespace onednn {

// Every function returns false when oneDNN has no kernel for the case; the caller then runs its
// own. Primitives are built once per case and kept.

// c (batch..., m, n) = a (batch..., m, k) b (batch..., k, n) + bias (n) + beta c.
struct Matmul {
  struct Axis {
    int64_t size, in_a, in_b, in_c;  // strides; 0: this operand does not have the axis
  };
  std::vector<Axis> batch;
  Axis m, n, k;
  float beta = 0;
  DType dtype = DType::f32, out = DType::f32;  // of a and b; of c: f32, or bf16 as they are
};
// What is done with rows begin .. end - 1 of c: in a product that is cut as soon as they are there,
// while they still lie in a core's cache, else when all are. Called once for every row, on several
// threads; `begin` is a multiple of kRowStep. It may not start threads or products of its own.
using RowsDone = std::function<void(int64_t begin, int64_t end)>;
constexpr int64_t kRowStep = 32;
void each_step(const RowsDone&, int64_t rows, int64_t columns);  // of a c that is there
bool matmul(const Matmul&, const void* a, const void* b, const float* bias, void* c,
            const RowsDone& = {});  // with RowsDone: no batch

// Layouts of the images; strided means row-major (n, c, h, w). The images are f32 or bf16; weights,
// their gradient and the bias are f32 (and rounded where the images are bf16).
struct Convolution {
  ConvGeometry shape;
  Layout x, y;
  DType dtype = DType::f32;
};
bool has_convolution(const Convolution&);  // an optimised kernel, not a reference loop
// What follows a convolution in the same pass: + residual (laid out as y), then the activation.
constexpr bool follows_convolution(Activation a) {
  return a == Activation::none || a == Activation::relu || a == Activation::relu6 ||
         a == Activation::hard_swish;
}
struct Tail {
  const void* residual = nullptr;
  Activation activation = Activation::none;
};
// Weights in the orders of the kernels that have asked for them; the plain ones must stay as they
// are while this lives.
struct PackedWeights;
std::shared_ptr<PackedWeights> pack_later();
// kept: where the weights in the kernel's order are looked for first, and stay. Null: nowhere.
bool convolution(const Convolution&, const void* x, const float* weight, const float* bias, void* y,
                 const Tail& = {}, PackedWeights* kept = nullptr);
// A convolution that the calling thread does by itself, beside others that do theirs.
class ThreadConvolution {
 public:
  virtual ~ThreadConvolution() = default;
  virtual size_t scratch_bytes() const = 0;
  virtual std::unique_ptr<ThreadConvolution> another() const = 0;  // for one more thread
  // residual: given if the Tail said so. scratch: memory of this thread, at a multiple of 64 bytes.
  virtual void run(const void* x, const void* residual, void* y, void* scratch) = 0;
};
// Keeps a copy of the weights and points to the bias. Null where oneDNN has no kernel.
std::unique_ptr<ThreadConvolution> thread_convolution(const Convolution&, const float* weight,
                                                      const float* bias, const Tail& = {},
                                                      PackedWeights* kept = nullptr);
bool convolution_input_gradient(const Convolution&, const void* gy, const float* weight, void* gx);
// gw (o, c / groups, kh, kw) = gradient + beta gw
bool convolution_weight_gradient(const Convolution&, const void* x, const void* gy, float* gw,
                                 float beta);

// What this processor has for bf16, as far as oneDNN may use it: AVX512-BF16, or AMX besides.
enum class Bf16 { none, dot_products, tiles };
Bf16 bf16_units();

bool convert_layout(const Tensor& from, const Tensor& to);  // dense images of one shape and dtype

}  // namespace onednn
}  // namespace pupil
