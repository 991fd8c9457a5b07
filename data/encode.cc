// Images as JPEG files, through libjpeg-turbo.
#include <csetjmp>
#include <cstdio>

#include "image.h"

// jpeglib.h needs the declarations of cstdio before it.
#include <jpeglib.h>

namespace pupil::data {
namespace {

struct Errors {
  jpeg_error_mgr base;
  std::jmp_buf back;
};

[[noreturn]] void give_up(j_common_ptr info) {
  std::longjmp(reinterpret_cast<Errors*>(info->err)->back, 1);
}

// No object with a destructor lives where longjmp passes.
bool write_jpeg(const Image& image, int quality, unsigned char** bytes, unsigned long* size) {
  jpeg_compress_struct info;
  Errors errors;
  info.err = jpeg_std_error(&errors.base);
  errors.base.error_exit = give_up;
  if (setjmp(errors.back)) {
    jpeg_destroy_compress(&info);
    return false;
  }
  jpeg_create_compress(&info);
  jpeg_mem_dest(&info, bytes, size);
  info.image_width = JDIMENSION(image.width);
  info.image_height = JDIMENSION(image.height);
  info.input_components = image.channels;
  info.in_color_space = image.channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
  jpeg_set_defaults(&info);
  jpeg_set_quality(&info, quality, TRUE);
  jpeg_start_compress(&info, TRUE);
  size_t row = size_t(image.width) * size_t(image.channels);
  while (info.next_scanline < info.image_height) {
    JSAMPROW line = const_cast<JSAMPROW>(image.pixels.data()) + info.next_scanline * row;
    jpeg_write_scanlines(&info, &line, 1);
  }
  jpeg_finish_compress(&info);
  jpeg_destroy_compress(&info);
  return true;
}

}  // namespace

std::string encode_jpeg(const Image& image, int quality) {
  PUPIL_CHECK((image.channels == 1 || image.channels == 3) && image.height > 0 && image.width > 0,
              "encode_jpeg: ", image.width, " x ", image.height, " pixels of ", image.channels,
              " channels");
  unsigned char* bytes = nullptr;
  unsigned long size = 0;
  bool whole = write_jpeg(image, quality, &bytes, &size);
  std::string file = whole ? std::string(reinterpret_cast<char*>(bytes), size) : "";
  std::free(bytes);
  PUPIL_CHECK(whole, "encode_jpeg: libjpeg could not write");
  return file;
}

}  // namespace pupil::data
