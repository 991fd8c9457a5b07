// The records of a zip archive, stored as PyTorch and NumPy write them, or deflated.
#pragma once
#include "file.h"

namespace pupil::data {

class ZipFile {
 public:
  // Sizes and offsets come from the central directory (also zip64). Names are keys only, never
  // paths. Throws InputError beginning with `where` for a damaged directory or a name that occurs
  // twice. The file must outlive this object.
  ZipFile(const MappedFile&, std::string where);

  const std::vector<std::string>& names() const { return names_; }  // in the directory's order
  bool has(const std::string& name) const { return records_.contains(name); }
  // Of a stored record the mapped bytes, of a deflated one its content, unpacked when it is asked
  // for the first time; valid while this object lives. Throws InputError for anything damaged or
  // encrypted, another compression, and when everything unpacked exceeds four times the file and
  // 32 MiB.
  std::string_view content(const std::string& name);

 private:
  struct Record {
    uint64_t method, packed, size, local;
    uint32_t checksum;
    bool encrypted;
  };
  [[noreturn]] void damaged(const std::string& what) const;
  void check(uint64_t at, uint64_t size, std::string_view what) const;
  template <class T>
  T number(uint64_t at) const;
  uint64_t find_end() const;
  Record record(uint64_t at, std::string_view name, uint64_t extra_bytes) const;
  std::string unpack(std::string_view packed, const Record&, const std::string& shown);

  std::string_view bytes_;
  std::string where_;
  std::vector<std::string> names_;
  std::map<std::string, Record> records_;
  std::map<std::string, std::string> unpacked_;
  uint64_t budget_;  // bytes that may still be unpacked
};

}  // namespace pupil::data
