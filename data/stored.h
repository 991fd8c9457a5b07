// Tensors as they lie in a mapped file. The readers of the containers check names, types and ranges
// and hand over a list of these; everything after that is the same for all containers.
#pragma once
#include "file.h"
#include "weights.h"

namespace pupil::data {

// The element types of safetensors files that can be read, by their names there.
enum class Stored : uint8_t { F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL };
size_t size_of(Stored);
const char* name_of(Stored);
std::optional<Stored> stored_named(std::string_view);
std::string stored_names();  // "F64, F32, ...", for messages

struct StoredTensor {
  std::string name;
  Stored type = Stored::F32;
  Shape shape;
  Shape strides;                   // in elements, >= 0
  const uint8_t* first = nullptr;  // element 0, at any alignment; the range was checked
};

// Checked geometry of a file that may lie: rank and dimensions within what Shape holds, the number
// of bytes without overflow. `what` begins the message of the InputError.
Shape checked_shape(const std::vector<int64_t>& dims, const std::string& what);
uint64_t checked_bytes(const Shape&, size_t element, const std::string& what);

// A copy as `dtype`: f64 or f32 from every type; i64 from integers and bool; i32, u8 and bf16 only
// from the same type (u8 also from bool). InputError otherwise, and for U64 values beyond int64.
Tensor convert(const StoredTensor&, DType dtype, const std::string& what);

// Names unique and without a "module." that all share; hash, read and list over the tensors.
// `file` keeps the memory that they point into alive.
std::shared_ptr<const Weights> make_weights(std::shared_ptr<const MappedFile> file,
                                            std::vector<StoredTensor> tensors,
                                            std::map<std::string, std::string> metadata,
                                            std::string container);

}  // namespace pupil::data
