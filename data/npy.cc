// NumPy's .npy: "\x93NUMPY", version, header length, a Python dict literal, the values.
// https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
#include <charconv>

#include "stored.h"

namespace pupil::data {
namespace {

struct Header {
  std::string descr;
  bool fortran_order = false;
  std::vector<int64_t> shape;
};

// The one form that NumPy writes: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }
class HeaderParser {
 public:
  HeaderParser(std::string_view text, const std::string& where) : text_(text), where_(where) {}

  Header parse() {
    Header h;
    int seen = 0;
    expect("{");
    while (!accept("}")) {
      std::string key = quoted();
      expect(":");
      if (key == "descr") {
        if (peek() != '\'' && peek() != '"')
          fail_input(where_, "structured arrays are not supported; save one array per field");
        h.descr = quoted();
        seen |= 1;
      } else if (key == "fortran_order") {
        h.fortran_order = accept("True");
        if (!h.fortran_order) expect("False");
        seen |= 2;
      } else if (key == "shape") {
        h.shape = tuple();
        seen |= 4;
      } else {
        fail_input(where_, "unknown header key '", printable(key), "'");
      }
      if (!accept(",")) {
        expect("}");
        break;
      }
    }
    if (peek() || seen != 7) bad();
    return h;
  }

 private:
  [[noreturn]] void bad() { fail_input(where_, "damaged header"); }
  char peek() {
    while (!text_.empty() && (text_[0] == ' ' || text_[0] == '\n')) text_.remove_prefix(1);
    return text_.empty() ? 0 : text_[0];
  }
  bool accept(std::string_view word) {
    peek();
    if (!text_.starts_with(word)) return false;
    text_.remove_prefix(word.size());
    return true;
  }
  void expect(std::string_view word) {
    if (!accept(word)) bad();
  }
  std::string quoted() {
    char quote = peek();
    if (quote != '\'' && quote != '"') bad();
    size_t end = text_.find(quote, 1);
    if (end == text_.npos) bad();
    std::string out(text_.substr(1, end - 1));
    text_.remove_prefix(end + 1);
    return out;
  }
  std::vector<int64_t> tuple() {
    std::vector<int64_t> out;
    expect("(");
    while (!accept(")")) {
      peek();
      int64_t value = 0;
      auto [end, error] = std::from_chars(text_.data(), text_.data() + text_.size(), value);
      if (error != std::errc()) bad();
      text_.remove_prefix(size_t(end - text_.data()));
      accept("L");  // written by Python 2
      out.push_back(value);
      if (!accept(",")) {
        expect(")");
        break;
      }
    }
    return out;
  }

  std::string_view text_;
  const std::string& where_;
};

struct Type {
  const char* descr;  // without the byte order
  Stored stored;
  DType read_as;
};
constexpr Type kTypes[] = {{"f8", Stored::F64, DType::f64}, {"f4", Stored::F32, DType::f32},
                           {"f2", Stored::F16, DType::f32}, {"i8", Stored::I64, DType::i64},
                           {"i4", Stored::I32, DType::i64}, {"i2", Stored::I16, DType::i64},
                           {"i1", Stored::I8, DType::i64},  {"u8", Stored::U64, DType::i64},
                           {"u4", Stored::U32, DType::i64}, {"u2", Stored::U16, DType::i64},
                           {"u1", Stored::U8, DType::u8},   {"b1", Stored::BOOL, DType::u8}};

}  // namespace

Tensor read_npy(const std::string& path) {
  MappedFile file(path);
  const std::string where = concat("npy: ", printable(path), ": ");
  std::string_view bytes(reinterpret_cast<const char*>(file.data()), file.size());
  if (!bytes.starts_with("\x93NUMPY") || bytes.size() < 12)
    fail_input(where, "not a .npy file (save it with numpy.save)");
  int version = uint8_t(bytes[6]);
  if (version < 1 || version > 3) fail_input(where, "unknown format version ", version);
  uint32_t length = 0;
  size_t length_bytes = version == 1 ? 2 : 4;
  memcpy(&length, bytes.data() + 8, length_bytes);
  size_t begin = 8 + length_bytes;
  if (length > bytes.size() - begin) fail_input(where, "the file ends inside its header");
  Header header = HeaderParser(bytes.substr(begin, length), where).parse();
  begin += length;

  const Type* type = nullptr;
  bool swapped = header.descr.starts_with('>');
  if (header.descr.size() == 3)
    for (const Type& t : kTypes)
      if (header.descr.substr(1) == t.descr) type = &t;
  if (!type || (swapped && size_of(type->stored) > 1))
    fail_input(where, "values of type '", printable(header.descr),
               "' are not supported; convert with .astype to float32, int64 or uint8");
  Shape shape = checked_shape(header.shape, where);
  uint64_t needed = checked_bytes(shape, size_of(type->stored), where);
  if (needed != bytes.size() - begin)
    fail_input(where, "shape ", shape, " of ", header.descr, " needs ", needed,
               " bytes; the file holds ", bytes.size() - begin);
  Shape strides = row_major_strides(shape);
  if (header.fortran_order) {
    int64_t step = 1;
    for (int d = 0; d < shape.rank; d++) {
      strides.dims[d] = step;
      step *= shape.dims[d];
    }
  }
  return convert({"", type->stored, shape, strides, file.data() + begin}, type->read_as, where);
}

Tensor read_npy_rows(const std::string& name) {
  size_t bracket = name.rfind(".npy[");
  if (bracket == std::string::npos || !name.ends_with(".npy]")) return read_npy(name);
  std::string path = name.substr(0, bracket + 4);
  std::string rows_path = name.substr(bracket + 5, name.size() - bracket - 6);
  Tensor whole = read_npy(path).contiguous(), rows = read_npy(rows_path);
  if (rows.dtype() != DType::i64 || rows.rank() != 1 || !rows.numel() || !whole.rank())
    fail_input("npy: ", rows_path, " holds ", name_of(rows.dtype()), " ", rows.shape(),
               "; save the numbers of the rows of ", path, " as one row of integers");
  Shape shape = whole.shape();
  shape[0] = rows.dim(0);
  Tensor chosen = empty(shape, whole.dtype());
  int64_t row_bytes = int64_t(chosen.bytes()) / rows.dim(0);
  for (int64_t i = 0; i < rows.dim(0); i++) {
    int64_t row = rows.data<int64_t>()[i];
    if (row < 0 || row >= whole.dim(0))
      fail_input("npy: ", rows_path, ": value ", i, " is ", row, ", but ", path, " has ",
                 whole.dim(0), " rows, counted from 0");
    memcpy(static_cast<char*>(chosen.raw()) + i * row_bytes,
           static_cast<const char*>(whole.raw()) + row * row_bytes, size_t(row_bytes));
  }
  return chosen;
}

void save_npy(const std::string& path, const Tensor& tensor) {
  Tensor t = tensor.dtype() == DType::bf16 ? tensor.to(DType::f32) : tensor;
  t = t.contiguous().to(Device{});
  const char* descr = t.dtype() == DType::f64   ? "<f8"
                      : t.dtype() == DType::f32 ? "<f4"
                      : t.dtype() == DType::f16 ? "<f2"
                      : t.dtype() == DType::i64 ? "<i8"
                      : t.dtype() == DType::i32 ? "<i4"
                                                : "|u1";
  std::string shape;
  for (int d = 0; d < t.rank(); d++) shape += concat(t.dim(d), d + 1 < t.rank() ? ", " : "");
  if (t.rank() == 1) shape += ',';
  std::string header =
      concat("{'descr': '", descr, "', 'fortran_order': False, 'shape': (", shape, "), }");
  header.resize((10 + header.size() + 1 + 63) / 64 * 64 - 10 - 1, ' ');  // values at 64 bytes
  header += '\n';
  uint16_t length = uint16_t(header.size());
  FileWriter file(path);
  file.write(std::string_view("\x93NUMPY\x01\x00", 8));
  file.write(&length, 2);
  file.write(header);
  file.write(t.raw(), t.bytes());
  file.commit();
}

}  // namespace pupil::data
