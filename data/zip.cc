// APPNOTE.TXT of PKWARE, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14 to 16.
#include "zip.h"

#include <zlib.h>

namespace pupil::data {
namespace {

constexpr uint64_t kLocal = 30, kCentral = 46, kEnd = 22;  // sizes of the headers

}  // namespace

ZipFile::ZipFile(const MappedFile& file, std::string where)
    : bytes_(file.text()),
      where_(std::move(where)),
      budget_(4 * file.size() + (uint64_t(32) << 20)) {
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
  uint64_t at = begin;
  for (uint64_t i = 0; i < entries; i++) {
    check(at, kCentral, "the central directory");
    if (number<uint32_t>(at) != 0x02014b50) damaged("bad central directory");
    uint64_t name_bytes = number<uint16_t>(at + 28), extra_bytes = number<uint16_t>(at + 30),
             comment_bytes = number<uint16_t>(at + 32);
    check(at + kCentral, name_bytes + extra_bytes + comment_bytes, "the central directory");
    std::string_view name = bytes_.substr(at + kCentral, name_bytes);
    if (!records_.emplace(name, record(at, name, extra_bytes)).second)
      fail_input(where_, "the record '", printable(name), "' occurs twice in the zip archive");
    names_.emplace_back(name);
    at += kCentral + name_bytes + extra_bytes + comment_bytes;
  }
}

void ZipFile::damaged(const std::string& what) const {
  fail_input(where_, "damaged or cut-off zip archive: ", what);
}

void ZipFile::check(uint64_t at, uint64_t size, std::string_view what) const {
  if (at > bytes_.size() || size > bytes_.size() - at)
    damaged(concat(what, " lies outside the file"));
}

template <class T>
T ZipFile::number(uint64_t at) const {
  check(at, sizeof(T), "a header");
  T value;
  memcpy(&value, bytes_.data() + at, sizeof value);
  return value;
}

// The end record is the last 22 bytes, before a comment of at most 65,535.
uint64_t ZipFile::find_end() const {
  if (bytes_.size() < kEnd) damaged("no end record");
  for (uint64_t comment = 0; comment <= 0xffff && comment <= bytes_.size() - kEnd; comment++) {
    uint64_t at = bytes_.size() - kEnd - comment;
    if (number<uint32_t>(at) == 0x06054b50 && number<uint16_t>(at + 20) == comment) return at;
  }
  damaged("no end record");
}

// The central directory's entry at `at`.
ZipFile::Record ZipFile::record(uint64_t at, std::string_view name, uint64_t extra_bytes) const {
  Record r{number<uint16_t>(at + 10), number<uint32_t>(at + 20),
           number<uint32_t>(at + 24), number<uint32_t>(at + 42),
           number<uint32_t>(at + 16), (number<uint16_t>(at + 8) & 1) != 0};
  // Extra field 1 holds, in this order, those of the sizes that do not fit into 32 bits.
  uint64_t extra = at + kCentral + name.size(), end = extra + extra_bytes;
  while (end - extra >= 4) {
    uint16_t id = number<uint16_t>(extra), length = number<uint16_t>(extra + 2);
    extra += 4;
    if (length > end - extra)
      damaged(concat("record '", printable(name), "' has a bad extra field"));
    if (id == 1) {
      uint64_t next = extra;
      for (uint64_t* value : {&r.size, &r.packed, &r.local})
        if (*value == 0xffffffff) {
          if (next + 8 > extra + length)
            damaged(concat("record '", printable(name), "' has a bad zip64 field"));
          *value = number<uint64_t>(next);
          next += 8;
        }
    }
    extra += length;
  }
  return r;
}

std::string_view ZipFile::content(const std::string& name) {
  const std::string shown = concat("record '", printable(name), "'");
  auto found = records_.find(name);
  PUPIL_CHECK(found != records_.end(), where_, "no ", shown);
  const Record& r = found->second;
  if (r.encrypted) fail_input(where_, shown, " of the zip archive is encrypted");
  if (r.method != 0 && r.method != 8)
    fail_input(where_, shown, " of the zip archive is compressed by method ", r.method,
               "; only deflate is read");
  if (r.method == 0 && r.packed != r.size) damaged(concat(shown, " has two sizes"));
  check(r.local, kLocal, shown);
  if (number<uint32_t>(r.local) != 0x04034b50) damaged(concat(shown, " has no local header"));
  uint64_t name_bytes = number<uint16_t>(r.local + 26), extra = number<uint16_t>(r.local + 28);
  check(r.local + kLocal, name_bytes + extra, shown);
  if (bytes_.substr(r.local + kLocal, name_bytes) != name)
    damaged(concat(shown, " has another name in its local header"));
  uint64_t first = r.local + kLocal + name_bytes + extra;
  check(first, r.packed, shown);
  std::string_view packed = bytes_.substr(first, r.packed);
  if (r.method == 0) return packed;
  auto [place, is_new] = unpacked_.try_emplace(name);
  if (is_new) place->second = unpack(packed, r, shown);
  return place->second;
}

std::string ZipFile::unpack(std::string_view packed, const Record& r, const std::string& shown) {
  if (r.size > budget_)
    fail_input(where_, shown, " of the zip archive claims ", r.size,
               " unpacked bytes, more than its file justifies; save it without compression");
  budget_ -= r.size;
  std::string out(r.size, '\0');
  z_stream stream{};
  PUPIL_CHECK(inflateInit2(&stream, -MAX_WBITS) == Z_OK, "zlib");
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  uint64_t left_in = packed.size(), left_out = out.size();
  int status = Z_OK;
  while (status == Z_OK) {  // zlib counts in 32 bits
    uInt in = uInt(std::min<uint64_t>(left_in, 1u << 30)),
         room = uInt(std::min<uint64_t>(left_out, 1u << 30));
    stream.avail_in = in;
    stream.avail_out = room;
    status = inflate(&stream, Z_NO_FLUSH);
    left_in -= in - stream.avail_in;
    left_out -= room - stream.avail_out;
  }
  inflateEnd(&stream);
  if (status != Z_STREAM_END || left_in || left_out ||
      crc32_z(0, reinterpret_cast<const Bytef*>(out.data()), out.size()) != r.checksum)
    damaged(concat(shown, " cannot be unpacked"));
  return out;
}

}  // namespace pupil::data
