// APPNOTE.TXT of PKWARE, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14 to 16.
#include "zip.h"

namespace pupil::data {
namespace {

class ZipReader {
 public:
  ZipReader(const MappedFile& file, const std::string& where)
      : bytes_(reinterpret_cast<const char*>(file.data()), file.size()), where_(where) {}

  std::map<std::string, std::string_view> read() {
    uint64_t end = find_end(), entries = number<uint16_t>(end + 10),
             size = number<uint32_t>(end + 12), begin = number<uint32_t>(end + 16);
    if (entries == 0xffff || size == 0xffffffff || begin == 0xffffffff) {
      if (end < 20 || number<uint32_t>(end - 20) != 0x07064b50) damaged("no zip64 locator");
      uint64_t end64 = number<uint64_t>(end - 20 + 8);
      if (number<uint32_t>(end64) != 0x06064b50) damaged("no zip64 end record");
      entries = number<uint64_t>(end64 + 32);
      size = number<uint64_t>(end64 + 40);
      begin = number<uint64_t>(end64 + 48);
    }
    check(begin, size, "the central directory");
    std::map<std::string, std::string_view> records;
    uint64_t at = begin;
    for (uint64_t i = 0; i < entries; i++) {
      check(at, kCentral, "the central directory");
      if (number<uint32_t>(at) != 0x02014b50) damaged("bad central directory");
      uint64_t name_bytes = number<uint16_t>(at + 28), extra_bytes = number<uint16_t>(at + 30),
               comment_bytes = number<uint16_t>(at + 32);
      check(at + kCentral, name_bytes + extra_bytes + comment_bytes, "the central directory");
      std::string_view name = bytes_.substr(at + kCentral, name_bytes);
      if (!records.emplace(name, record(at, name, extra_bytes)).second)
        fail_input(where_, "the record '", printable(name), "' occurs twice in the zip archive");
      at += kCentral + name_bytes + extra_bytes + comment_bytes;
    }
    return records;
  }

 private:
  static constexpr uint64_t kLocal = 30, kCentral = 46, kEnd = 22;

  [[noreturn]] void damaged(const std::string& what) {
    fail_input(where_, "damaged or cut-off zip archive: ", what);
  }
  void check(uint64_t at, uint64_t size, std::string_view what) {
    if (at > bytes_.size() || size > bytes_.size() - at)
      damaged(concat(what, " lies outside the file"));
  }
  template <class T>
  T number(uint64_t at) {
    check(at, sizeof(T), "a header");
    T value;
    memcpy(&value, bytes_.data() + at, sizeof value);
    return value;
  }

  // The end record is the last 22 bytes, before a comment of at most 65,535.
  uint64_t find_end() {
    if (bytes_.size() < kEnd) damaged("no end record");
    for (uint64_t comment = 0; comment <= 0xffff && comment <= bytes_.size() - kEnd; comment++) {
      uint64_t at = bytes_.size() - kEnd - comment;
      if (number<uint32_t>(at) == 0x06054b50 && number<uint16_t>(at + 20) == comment) return at;
    }
    damaged("no end record");
  }

  // The content that the central directory's entry at `at` describes.
  std::string_view record(uint64_t at, std::string_view name, uint64_t extra_bytes) {
    std::string shown = concat("record '", printable(name), "'");
    if (number<uint16_t>(at + 8) & 1) fail_input(where_, shown, " of the zip archive is encrypted");
    uint64_t method = number<uint16_t>(at + 10), stored = number<uint32_t>(at + 20),
             size = number<uint32_t>(at + 24), local = number<uint32_t>(at + 42);
    // Extra field 1 holds, in this order, those of the sizes that do not fit into 32 bits.
    uint64_t extra = at + kCentral + name.size(), end = extra + extra_bytes;
    while (end - extra >= 4) {
      uint16_t id = number<uint16_t>(extra), length = number<uint16_t>(extra + 2);
      extra += 4;
      if (length > end - extra) damaged(concat(shown, " has a bad extra field"));
      if (id == 1) {
        uint64_t next = extra;
        for (uint64_t* value : {&size, &stored, &local})
          if (*value == 0xffffffff) {
            if (next + 8 > extra + length) damaged(concat(shown, " has a bad zip64 field"));
            *value = number<uint64_t>(next);
            next += 8;
          }
      }
      extra += length;
    }
    if (method != 0 || stored != size)
      fail_input(where_, shown,
                 " of the zip archive is compressed, which torch.save never does; of a TorchScript "
                 "program "
                 "save the state_dict() instead");
    check(local, kLocal, shown);
    if (number<uint32_t>(local) != 0x04034b50) damaged(concat(shown, " has no local header"));
    uint64_t local_name = number<uint16_t>(local + 26), local_extra = number<uint16_t>(local + 28);
    check(local + kLocal, local_name + local_extra, shown);
    if (bytes_.substr(local + kLocal, local_name) != name)
      damaged(concat(shown, " has another name in its local header"));
    uint64_t content = local + kLocal + local_name + local_extra;
    check(content, size, shown);
    return bytes_.substr(content, size);
  }

  std::string_view bytes_;
  const std::string& where_;
};

}  // namespace

std::map<std::string, std::string_view> read_zip(const MappedFile& file, const std::string& where) {
  return ZipReader(file, where).read();
}

}  // namespace pupil::data
