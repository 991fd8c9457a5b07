// NumPy's .npy: "\x93NUMPY", version, header length, a Python dict literal, the values.
// https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
#include <zlib.h>

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "stored.h"
#include "zip.h"

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

namespace {

// The array and the type as which read_npy gives it.
std::pair<StoredTensor, DType> parse_npy(std::string_view bytes, const std::string& where) {
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
  const uint8_t* first = reinterpret_cast<const uint8_t*>(bytes.data()) + begin;
  return {{"", type->stored, shape, strides, first}, type->read_as};
}

}  // namespace

StoredTensor npy_tensor(std::string_view bytes, const std::string& where) {
  return parse_npy(bytes, where).first;
}

Tensor read_npy(const std::string& path) {
  MappedFile file(path);
  const std::string where = concat("npy: ", printable(path), ": ");
  auto [array, read_as] = parse_npy(file.text(), where);
  return convert(array, read_as, where);
}

Contents read_npy_file(const std::string& path) {
  auto file = std::make_shared<MappedFile>(path);
  StoredTensor array = npy_tensor(file->text(), concat("npy: ", printable(path), ": "));
  array.name = std::filesystem::path(path).stem().string();
  return {{std::move(file)}, {}, {std::move(array)}, {}, "npy"};
}

// A zip archive of .npy files, as numpy.savez and savez_compressed write it.
Contents read_npz(const std::string& path) {
  auto file = std::make_shared<MappedFile>(path);
  auto zip = std::make_shared<ZipFile>(*file, concat("npz: ", printable(path), ": "));
  Contents all{{file}, {zip}, {}, {}, "npz"};
  for (const std::string& name : zip->names()) {
    if (!name.ends_with(".npy")) continue;
    StoredTensor array = npy_tensor(
        zip->content(name), concat("npz: ", printable(path), ": '", printable(name), "': "));
    array.name = name.substr(0, name.size() - 4);
    all.tensors.push_back(std::move(array));
  }
  return all;
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

namespace {

// All before the values, which begin at a multiple of 64 bytes.
std::string npy_head(std::string_view descr, const Shape& shape) {
  std::string dims;
  for (int d = 0; d < shape.rank; d++)
    dims += concat(shape.dims[d], d + 1 < shape.rank ? ", " : "");
  if (shape.rank == 1) dims += ',';
  std::string header =
      concat("{'descr': '", descr, "', 'fortran_order': False, 'shape': (", dims, "), }");
  header.resize((10 + header.size() + 1 + 63) / 64 * 64 - 10 - 1, ' ');
  header += '\n';
  std::string head("\x93NUMPY\x01\x00", 8);
  head += char(header.size() & 0xff);
  head += char(header.size() >> 8);
  return head + header;
}

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

}  // namespace

void save_npy(const std::string& path, const Tensor& tensor) {
  Tensor t = tensor.dtype() == DType::bf16 ? tensor.to(DType::f32) : tensor;
  t = t.contiguous().to(Device{});
  const char* descr = t.dtype() == DType::f64   ? "<f8"
                      : t.dtype() == DType::f32 ? "<f4"
                      : t.dtype() == DType::f16 ? "<f2"
                      : t.dtype() == DType::i64 ? "<i8"
                      : t.dtype() == DType::i32 ? "<i4"
                                                : "|u1";
  FileWriter file(path);
  file.write(npy_head(descr, t.shape()));
  file.write(t.raw(), t.bytes());
  file.commit();
}

// Stored records, with sizes and offsets of 64 bits in all of them (APPNOTE.TXT, 4.5.3).
void write_npz(const std::string& path, const std::vector<Described>& tensors,
               const ValuesOf& values) {
  std::vector<std::string> descriptions;
  for (const Described& t : tensors) {
    const Type* type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                    [&](const Type& known) { return known.stored == t.type; });
    if (type == std::end(kTypes))
      fail_input(printable(path), ": tensor '", printable(t.name), "' is ", name_of(t.type),
                 ", which .npz does not have; convert it with --dtype f32");
    if (t.name.size() > 60000)
      fail_input(printable(path), ": a tensor's name is too long for .npz");
    descriptions.push_back(concat(size_of(t.type) > 1 ? "<" : "|", type->descr));
  }
  FileWriter file(path);
  std::string directory;
  uint64_t at = 0;
  for (size_t i = 0; i < tensors.size(); i++) {
    std::string name = tensors[i].name + ".npy", head = npy_head(descriptions[i], tensors[i].shape);
    Values v = values(i);
    uint64_t size = head.size() + v.bytes.size();
    auto checksum = crc32_z(0, reinterpret_cast<const Bytef*>(head.data()), head.size());
    if (!v.bytes.empty()) checksum = crc32_z(checksum, v.bytes.data(), v.bytes.size());
    // Version, flags (names in UTF-8), method, time and day (1 January 1980), checksum, sizes.
    std::string common;
    for (int value : {45, 0x800, 0, 0, 0x21}) put(common, uint16_t(value));
    put(common, uint32_t(checksum));
    put(common, ~0u);
    put(common, ~0u);
    put(common, uint16_t(name.size()));
    std::string local;
    put(local, uint32_t(0x04034b50));
    local += common;
    put(local, uint16_t(20));
    local += name;
    put(local, uint32_t(1 | 16 << 16));
    put(local, size);
    put(local, size);
    file.write(local);
    file.write(head);
    file.write(v.bytes.data(), v.bytes.size());

    put(directory, uint32_t(0x02014b50));
    put(directory, uint16_t(45));
    directory += common;
    put(directory, uint16_t(28));
    directory.append(10, '\0');
    put(directory, ~0u);
    directory += name;
    put(directory, uint32_t(1 | 24 << 16));
    for (uint64_t value : {size, size, at}) put(directory, value);
    at += local.size() + size;
  }
  uint64_t begin = at, n = tensors.size();
  std::string end = directory;
  put(end, uint32_t(0x06064b50));
  put(end, uint64_t(44));
  put(end, uint16_t(45));
  put(end, uint16_t(45));
  put(end, uint64_t(0));
  for (uint64_t value : {n, n, uint64_t(directory.size()), begin}) put(end, value);
  put(end, uint32_t(0x07064b50));
  put(end, uint32_t(0));
  put(end, uint64_t(begin + directory.size()));
  put(end, uint32_t(1));
  put(end, uint32_t(0x06054b50));
  put(end, uint32_t(0));
  put(end, uint16_t(0xffff));
  put(end, uint16_t(0xffff));
  put(end, ~0u);
  put(end, ~0u);
  put(end, uint16_t(0));
  file.write(end);
  file.commit();
}

}  // namespace pupil::data
