// The words that everything else uses: dtypes, shapes, devices, errors. Start reading here.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <iosfwd>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

// PUPIL_CUDA=1 means "there is device code": nvcc or the CPU emulation of CUDA compiles it.
#if PUPIL_CUDA
#include <cuda_runtime.h>
#endif
#ifdef __CUDACC__
#define PUPIL_HD __host__ __device__
#else
#define PUPIL_HD
#endif

namespace pupil {

// An unqualified exp(float) could pick the double function in host code only, and CPU and GPU would
// differ silently; with these, float stays float on both.
using std::erf;
using std::exp;
using std::log;
using std::log1p;
using std::pow;
using std::sqrt;
using std::tanh;

// What a failed PUPIL_CHECK throws: an error of a program or of the engine itself.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Bad input of a person (a file, a configuration key, a command line). The program prints it as one
// line and exits with 2.
struct InputError : Error {
  using Error::Error;
};

// A number that is none has no sign worth showing: "nan", never "-nan".
template <class T>
const T& shown(const T& part) {
  return part;
}
inline double shown(double part) { return std::isnan(part) ? std::abs(part) : part; }
inline float shown(float part) { return std::isnan(part) ? std::abs(part) : part; }

template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << shown(parts));
  return out.str();
}

template <class... Parts>
[[noreturn]] void fail(const char* file, int line, const char* condition, const Parts&... message) {
  throw Error(concat(message..., "  [", condition, " at ", file, ":", line, "]"));
}

// fail_input("data: no such file: ", path): says what, where and what to do instead.
template <class... Parts>
[[noreturn]] void fail_input(const Parts&... message) {
  throw InputError(concat(message...));
}

#define PUPIL_CHECK(condition, ...)                                               \
  do {                                                                            \
    if (!(condition)) ::pupil::fail(__FILE__, __LINE__, #condition, __VA_ARGS__); \
  } while (0)

// For errors about an unknown name: "; did you mean kd?" with the candidate of the smallest edit
// distance (Levenshtein 1966), or, if none is near, the candidates when they are few, else "".
// prefix: printed before every candidate.
std::string did_you_mean(std::string_view name, const std::vector<std::string>& candidates,
                         const std::string& prefix = "");

enum class DType : uint8_t { f64, f32, bf16, f16, i64, i32, u8 };  // f16: storage in files only

// Image trunks on the CPU may store (n, c, h, w) as nhwc or in blocks of 16 channels; shape() stays
// (n, c, h, w).
enum class Layout : uint8_t { strided, nhwc, nchw16c };

// relu6: x cut at 0 and 6.
enum class Activation { none, relu, relu6, hard_swish, silu, gelu, gelu_tanh, quick_gelu };

enum class DeviceKind : uint8_t { cpu, cuda };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;
  bool is_cuda() const { return kind == DeviceKind::cuda; }
  bool operator==(const Device&) const = default;
};

// Brain float: round to nearest even in plain integer code, the same type for g++ and nvcc. No
// initialiser: an array of it in shared memory must stay trivial. The assignment is written out and
// rounding has no branch: else g++ makes no vector code of a loop that stores bf16.
struct bf16 {
  uint16_t bits;
  bf16() = default;
  bf16(const bf16&) = default;
  PUPIL_HD bf16& operator=(const bf16& other) {
    bits = other.bits;
    return *this;
  }
  PUPIL_HD bf16(float value) {
    uint32_t u;
    memcpy(&u, &value, 4);
    uint32_t rounded = u + 0x7fffu + ((u >> 16) & 1u), quiet = u | 0x400000u;
    bits = uint16_t(((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded) >> 16);  // NaN stays NaN
  }
  PUPIL_HD operator float() const {
    uint32_t u = uint32_t(bits) << 16;
    float value;
    memcpy(&value, &u, 4);
    return value;
  }
};

size_t size_of(DType);        // bytes of one element
const char* name_of(DType);   // "f32"
bool is_floating(DType);      // f64, f32, bf16, f16
const char* name_of(Layout);  // "nhwc"

template <class T>
struct dtype_of;
template <>
struct dtype_of<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct dtype_of<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct dtype_of<bf16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct dtype_of<int64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct dtype_of<int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct dtype_of<uint8_t> {
  static constexpr DType value = DType::u8;
};

// Every functor is evaluated in acc_t<T>: float for bf16 and float, double for double.
template <class T>
struct accumulate {
  using type = float;
};
template <>
struct accumulate<double> {
  using type = double;
};
template <class T>
using acc_t = typename accumulate<T>::type;

// The dtype in which norms, losses and statistics of a tensor of this dtype are kept.
inline DType acc_dtype(DType t) { return t == DType::f64 ? DType::f64 : DType::f32; }

template <class T>
struct tag {
  using type = T;
};

// The one dtype switch: dispatch(x.dtype(), [&](auto t) { using T = typename decltype(t)::type; }).
template <class F>
auto dispatch(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f64:
      return f(tag<double>{});
    case DType::f32:
      return f(tag<float>{});
    case DType::bf16:
      return f(tag<bf16>{});
    default:
      throw Error(std::string("floating dtype expected, got ") + name_of(dtype));
  }
}

constexpr int kMaxRank = 6;

// Up to six dimensions, row-major, PyTorch's order. Rank 0 is a scalar with one element.
struct Shape {
  int64_t dims[kMaxRank]{};
  int rank = 0;

  Shape() = default;
  Shape(std::initializer_list<int64_t> list);
  explicit Shape(std::span<const int64_t> list);

  int64_t operator[](int i) const { return dims[i < 0 ? i + rank : i]; }  // negative: from the end
  int64_t& operator[](int i) { return dims[i < 0 ? i + rank : i]; }
  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < rank; i++) n *= dims[i];
    return n;
  }
  bool operator==(const Shape& other) const {
    return rank == other.rank && !memcmp(dims, other.dims, size_t(rank) * sizeof(dims[0]));
  }
};

Shape row_major_strides(const Shape&);  // in elements

std::ostream& operator<<(std::ostream&, const Shape&);  // (2,3,4)

}  // namespace pupil
