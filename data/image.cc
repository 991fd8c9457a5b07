// Photographs: PNG through stb_image, JPEG through libjpeg-turbo.
#include <zlib.h>

#include <algorithm>
#include <csetjmp>
#include <cstdio>

#include "file.h"
#include "sources.h"

// jpeglib.h needs the declarations of cstdio before it.
#include <jerror.h>
#include <jpeglib.h>

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_PNG
#define STBI_NO_STDIO
#define STBI_NO_LINEAR
#define STBI_NO_HDR
#define STBI_MAX_DIMENSIONS 65535
#include <stb/stb_image.h>

namespace pupil::data {
namespace {

using File = std::span<const uint8_t>;

constexpr uint8_t kPngSignature[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
constexpr uint64_t kMaxPixels = uint64_t(1) << 27;

bool is_png(File f) {
  return f.size() >= 8 && std::equal(kPngSignature, kPngSignature + 8, f.data());
}
bool is_jpeg(File f) { return f.size() >= 3 && f[0] == 0xff && f[1] == 0xd8 && f[2] == 0xff; }

uint32_t big32(File f, size_t at) {
  return uint32_t(f[at]) << 24 | uint32_t(f[at + 1]) << 16 | uint32_t(f[at + 2]) << 8 | f[at + 3];
}
size_t big16(File f, size_t at) { return size_t(f[at]) << 8 | f[at + 1]; }

// A small file must not make us reserve a large image: no codec packs more than `per_byte` pixels
// into a byte.
std::string size_defect(uint64_t height, uint64_t width, uint64_t bytes, uint64_t per_byte) {
  if (!height || !width) return "it has no pixels";
  if (height > 65535 || width > 65535 || height * width > kMaxPixels)
    return concat("it claims ", width, " x ", height, " pixels, more than are read");
  if (height * width > bytes * per_byte)
    return concat("it claims ", width, " x ", height, " pixels, which its ", bytes,
                  " bytes cannot hold");
  return "";
}

std::string png_defect(File f) {
  bool seen_data = false;
  for (size_t at = 8;;) {
    if (f.size() - at < 12) return "it is cut off";
    size_t length = big32(f, at);
    if (length > f.size() - at - 12) return "it is cut off";
    File type = f.subspan(at + 4, 4);
    std::string name(type.begin(), type.end());
    if ((at == 8) != (name == "IHDR")) return "its header is damaged";
    bool critical = !(type[0] & 0x20);
    if (critical && crc32(0, f.data() + at + 4, unsigned(length + 4)) != big32(f, at + 8 + length))
      return concat("the checksum of its ", printable(name), " part is wrong");
    if (name == "IHDR") {
      if (length != 13) return "its header is damaged";
      // 1-bit grey, eight pixels to a byte, deflated at most 1032 to 1
      std::string defect = size_defect(big32(f, at + 12), big32(f, at + 8), f.size(), 8 * 1032);
      if (!defect.empty()) return defect;
      static constexpr int kChannels[7] = {1, 0, 3, 1, 2, 0, 4};
      int depth = f[at + 16], colour = f[at + 17];
      if (colour > 6 || !kChannels[colour]) return "its header is damaged";
      uint64_t row = (uint64_t(big32(f, at + 8)) * uint64_t(depth * kChannels[colour]) + 7) / 8 + 1;
      if (row * big32(f, at + 12) > 1032 * uint64_t(f.size()))
        return concat("it claims ", big32(f, at + 8), " x ", big32(f, at + 12),
                      " pixels, which its ", f.size(), " bytes cannot hold");
    }
    seen_data |= name == "IDAT";
    if (name == "IEND") return seen_data ? "" : "it has no pixels";
    at += length + 12;
  }
}

std::string jpeg_defect(File f) {
  bool seen_frame = false, seen_scan = false;
  for (size_t at = 2;;) {
    // Between segments: what libjpeg skips too.
    const void* next = std::memchr(f.data() + at, 0xff, f.size() - at);
    if (!next) return "it is cut off";
    at = size_t(static_cast<const uint8_t*>(next) - f.data());
    while (at < f.size() && f[at] == 0xff) at++;  // fill bytes
    if (at >= f.size()) return "it is cut off";
    uint8_t marker = f[at++];
    if (marker == 0xd9) return seen_scan ? "" : "it has no pixels";
    if (marker == 0 || marker == 1 || (marker >= 0xd0 && marker <= 0xd8)) continue;  // no length
    if (f.size() - at < 2) return "it is cut off";
    size_t length = big16(f, at);
    if (length < 2) return "its header is damaged";
    if (length > f.size() - at) return "it is cut off";
    bool frame =
        marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc;
    if (frame) {
      if (length < 8) return "its header is damaged";
      // A block of 64 pixels takes at least one bit.
      std::string defect = size_defect(big16(f, at + 3), big16(f, at + 5), f.size(), 512);
      if (!defect.empty()) return defect;
      seen_frame = true;
    }
    if (marker == 0xda) {
      if (!seen_frame) return "its header is damaged";
      seen_scan = true;
    }
    at += length;  // entropy-coded bytes are passed over by the two loops above
  }
}

// Tag 0x0112 of the first directory of EXIF data, which is a TIFF header: 1 (upright) to 8, the row
// and column of the stored image that are shown first (CIPA DC-008, 4.6.5). 1 when it is damaged.
int exif_orientation(File exif) {
  if (exif.size() < 8) return 1;
  bool little = exif[0] == 'I' && exif[1] == 'I';
  if (!little && !(exif[0] == 'M' && exif[1] == 'M')) return 1;
  auto number = [&](size_t at, size_t bytes) {
    size_t value = 0;
    for (size_t k = 0; k < bytes; k++)
      value |= size_t(exif[at + k]) << 8 * (little ? k : bytes - 1 - k);
    return value;
  };
  size_t directory = number(4, 4);
  if (number(2, 2) != 42 || directory > exif.size() - 2) return 1;
  size_t entries = number(directory, 2);
  for (size_t at = directory + 2; entries-- && at + 12 <= exif.size(); at += 12)
    if (number(at, 2) == 0x0112 && number(at + 2, 2) == 3) {
      size_t value = number(at + 8, 2);
      return value >= 1 && value <= 8 ? int(value) : 1;
    }
  return 1;
}

// Both are called for files whose structure was found whole.
int png_orientation(File f) {
  for (size_t at = 8; f.size() - at >= 12; at += big32(f, at) + 12) {
    if (big32(f, at) > f.size() - at - 12) break;
    if (std::equal(&f[at + 4], &f[at + 8], "eXIf"))
      return exif_orientation(f.subspan(at + 8, big32(f, at)));
  }
  return 1;
}

int jpeg_orientation(File f) {
  static constexpr char kExif[] = "Exif\0";  // and the second zero that ends every literal
  for (size_t at = 2; at + 4 <= f.size() && f[at] == 0xff && f[at + 1] != 0xda;) {
    size_t length = big16(f, at + 2);
    if (length < 2 || length > f.size() - at - 2) break;
    if (f[at + 1] == 0xe1 && length >= 8 && std::equal(kExif, kExif + 6, &f[at + 4]))
      return exif_orientation(f.subspan(at + 10, length - 8));
    at += length + 2;
  }
  return 1;
}

void turn_upright(int orientation, Image& image) {
  if (orientation == 1) return;
  bool transposed = orientation >= 5;  // rows are stored as columns
  bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  bool from_bottom = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  Image out = image;
  if (transposed) std::swap(out.height, out.width);
  uint8_t* to = out.pixels.data();
  for (int y = 0; y < out.height; y++)
    for (int x = 0; x < out.width; x++, to += 3) {
      int row = transposed ? x : y, column = transposed ? y : x;
      if (from_bottom) row = image.height - 1 - row;
      if (from_right) column = image.width - 1 - column;
      std::copy_n(&image.pixels[(size_t(row) * size_t(image.width) + size_t(column)) * 3], 3, to);
    }
  image = std::move(out);
}

struct JpegErrors {
  jpeg_error_mgr base;
  std::jmp_buf escape;
  char message[JMSG_LENGTH_MAX];
};

[[noreturn]] void jpeg_failed(j_common_ptr info) {
  JpegErrors* errors = reinterpret_cast<JpegErrors*>(info->err);
  errors->base.format_message(info, errors->message);
  std::longjmp(errors->escape, 1);
}

// Warnings are silent, as in Pillow; only an early end of the data is an error.
void jpeg_warned(j_common_ptr info, int level) {
  if (level < 0 && info->err->msg_code == JWRN_JPEG_EOF) jpeg_failed(info);
}

// Nothing with a destructor lives in this frame: errors leave it through longjmp.
bool decode_jpeg(File file, JpegErrors& errors, Image& out, Bytes& line) {
  jpeg_decompress_struct info;
  info.err = jpeg_std_error(&errors.base);
  errors.base.error_exit = jpeg_failed;
  errors.base.emit_message = jpeg_warned;
  if (setjmp(errors.escape)) {
    jpeg_destroy_decompress(&info);
    return false;
  }
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, file.data(), file.size());
  jpeg_read_header(&info, TRUE);
  bool inks = info.num_components == 4;  // CMYK or YCCK; libjpeg gives CMYK
  info.out_color_space = inks ? JCS_CMYK : JCS_RGB;
  jpeg_start_decompress(&info);
  out.height = int(info.output_height);
  out.width = int(info.output_width);
  out.channels = 3;
  size_t width = size_t(out.width), row = width * 3;
  out.pixels.resize(row * size_t(out.height));
  line.resize(inks ? width * 4 : 0);
  while (info.output_scanline < info.output_height) {
    uint8_t* to = out.pixels.data() + row * info.output_scanline;
    JSAMPROW rows[1] = {inks ? line.data() : to};
    jpeg_read_scanlines(&info, rows, 1);
    if (!inks) continue;
    // Adobe stores 255 - ink, so a channel is the product of what two inks let through.
    for (size_t x = 0; x < width; x++)
      for (size_t c = 0; c < 3; c++)
        to[3 * x + c] = uint8_t((line[4 * x + c] * line[4 * x + 3] + 127) / 255);
  }
  jpeg_finish_decompress(&info);
  jpeg_destroy_decompress(&info);
  return true;
}

}  // namespace

std::string image_defect(File file) {
  if (file.empty()) return "it is empty";
  if (is_png(file)) return png_defect(file);
  if (is_jpeg(file)) return jpeg_defect(file);
  return "it is neither PNG nor JPEG";
}

void decode_image(File file, const std::string& path, bool upright, Image& out) {
  auto refuse = [&](const std::string& why) {
    fail_input("data: cannot read the image ", path, ": ", why,
               "; replace it or take it out of the data set");
  };
  if (std::string defect = image_defect(file); !defect.empty()) refuse(defect);
  if (file.size() > size_t(1) << 30) refuse("it is longer than 1 GiB");
  if (is_jpeg(file)) {
    JpegErrors errors;
    thread_local Bytes line;
    if (!decode_jpeg(file, errors, out, line)) refuse(errors.message);
    if (upright) turn_upright(jpeg_orientation(file), out);
    return;
  }
  int width = 0, height = 0, channels = 0;
  std::unique_ptr<uint8_t, void (*)(void*)> pixels(
      stbi_load_from_memory(file.data(), int(file.size()), &width, &height, &channels, 3),
      stbi_image_free);
  if (!pixels) refuse(stbi_failure_reason());
  out.height = height;
  out.width = width;
  out.channels = 3;
  out.pixels.assign(pixels.get(), pixels.get() + size_t(height) * size_t(width) * 3);
  if (upright) turn_upright(png_orientation(file), out);
}

Image decode_image(File file, const std::string& path, bool upright) {
  Image out;
  decode_image(file, path, upright, out);
  return out;
}

}  // namespace pupil::data
