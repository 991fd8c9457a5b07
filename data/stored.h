// Tensors as they lie in a mapped file. The readers of the containers check names, types and ranges
// and hand over a list of these; everything after that is the same for all containers.
#pragma once
#include <immintrin.h>

#include "file.h"
#include "weights.h"

namespace pupil::data {

// The element types of safetensors files that can be read, by their names there.
enum class Stored : uint8_t { F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL };
size_t size_of(Stored);
const char* name_of(Stored);
std::optional<Stored> stored_named(std::string_view);
std::string stored_names();  // "F64, F32, ...", for messages
// Settings that Hugging Face and open_clip keep beside the weights; they become metadata under
// these names.
inline constexpr const char* kSettings[] = {"config.json", "preprocessor_config.json",
                                            "open_clip_config.json"};

// IEEE half precision; clang 14 has no _Float16 without AVX512-FP16.
struct Half {
  uint16_t bits;
  operator float() const { return _cvtsh_ss(bits); }
};

struct Bool {
  uint8_t byte;
  operator bool() const { return byte != 0; }
};

// Calls f with the tag of the C++ type of an element.
template <class F>
void dispatch_stored(Stored type, F&& f) {
  switch (type) {
    case Stored::F64:
      return f(tag<double>{});
    case Stored::F32:
      return f(tag<float>{});
    case Stored::F16:
      return f(tag<Half>{});
    case Stored::BF16:
      return f(tag<bf16>{});
    case Stored::I64:
      return f(tag<int64_t>{});
    case Stored::I32:
      return f(tag<int32_t>{});
    case Stored::I16:
      return f(tag<int16_t>{});
    case Stored::I8:
      return f(tag<int8_t>{});
    case Stored::U64:
      return f(tag<uint64_t>{});
    case Stored::U32:
      return f(tag<uint32_t>{});
    case Stored::U16:
      return f(tag<uint16_t>{});
    case Stored::U8:
      return f(tag<uint8_t>{});
    case Stored::BOOL:
      return f(tag<Bool>{});
  }
}

struct StoredTensor {
  std::string name;
  Stored type = Stored::F32;
  Shape shape;
  Shape strides;                             // in elements, >= 0
  const uint8_t* first = nullptr;            // element 0, at any alignment; the range was checked
  std::shared_ptr<const MappedFile> file{};  // that it lies in; null: memory made for it
};

// Checked geometry of a file that may lie: rank and dimensions within what Shape holds, the number
// of bytes without overflow. `what` begins the message of the InputError.
Shape checked_shape(const std::vector<int64_t>& dims, const std::string& what);
uint64_t checked_bytes(const Shape&, size_t element, const std::string& what);

// A copy as `dtype`: f64 or f32 from every type; i64 from integers and bool; i32, u8 and bf16 only
// from the same type (u8 also from bool). InputError otherwise, and for U64 values beyond int64.
Tensor convert(const StoredTensor&, DType dtype, const std::string& what);

// What one file holds. Tensors point into `files` (make_weights notes in which) and into what was
// unpacked, which `owners` keep alive.
struct Contents {
  std::vector<std::shared_ptr<const MappedFile>> files;
  std::vector<std::shared_ptr<const void>> owners;
  std::vector<StoredTensor> tensors;
  std::map<std::string, std::string> metadata;
  std::string container;
};
Contents read_safetensors(const std::string& path);
Contents read_pth(const std::string& path);
Contents read_npz(const std::string& path);
Contents read_npy_file(const std::string& path);  // one tensor, named like the file
Contents read_contents(const std::string& path);  // whichever it is
// model.safetensors.index.json and the like, which map names of tensors to files beside them.
Contents read_sharded(const std::string& index_path);

// What a writer is told of a tensor before it asks for the values: row-major, of the stored type.
struct Described {
  std::string name;
  Stored type = Stored::F32;
  Shape shape;
  uint64_t bytes() const { return uint64_t(shape.numel()) * size_of(type); }
};
struct Values {
  std::span<const uint8_t> bytes;
  std::shared_ptr<const void> owner;  // of memory made for them; empty: they lie in a mapped file
};
using ValuesOf = std::function<Values(size_t)>;  // of tensor i; may be asked more than once
void write_safetensors(const std::string& path, const std::vector<Described>&, const ValuesOf&,
                       const std::map<std::string, std::string>& metadata);
// InputError for BF16, which NumPy does not have.
void write_npz(const std::string& path, const std::vector<Described>&, const ValuesOf&);

bool is_legacy_pth(std::string_view start);  // of the file's first 32 bytes or more

// The values of a .npy file, `bytes`, where they lie.
StoredTensor npy_tensor(std::string_view bytes, const std::string& where);

// Hash, read and list over the tensors. Of their names "module." is removed where all share it, and
// "backbone." where that leaves every name unique.
std::shared_ptr<const Weights> make_weights(const std::string& path, Contents);

}  // namespace pupil::data
