// Small data sets written by the tests themselves, in the formats of the public ones.
#pragma once
#include <zlib.h>

#include <fstream>

#include "data/data.h"
#include "support.h"

namespace pupil::test {

using Bytes = std::vector<uint8_t>;

inline void write_bytes(const std::string& path, const Bytes& bytes) {
  std::filesystem::remove(path);  // replacing the content of a file waits for the disk
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), std::streamsize(bytes.size()));
}

inline Bytes read_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Some byte that depends on its place: equal places in equal files are equal.
inline uint8_t noise(uint64_t seed, int64_t i) {
  return uint8_t(random_bits({seed, stream_id("test.noise"), 0}, i) >> 24);
}

inline void put_big32(Bytes& to, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) to.push_back(uint8_t(value >> shift));
}

inline Bytes gzip(const Bytes& raw) {
  z_stream stream{};
  PUPIL_CHECK(deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK, "zlib");
  Bytes packed(deflateBound(&stream, raw.size()) + 64);
  stream.next_in = const_cast<Bytef*>(raw.data());
  stream.avail_in = unsigned(raw.size());
  stream.next_out = packed.data();
  stream.avail_out = unsigned(packed.size());
  PUPIL_CHECK(deflate(&stream, Z_FINISH) == Z_STREAM_END, "zlib");
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

inline Bytes idx_images(int n, int side, uint64_t seed = 1) {
  Bytes file;
  for (int value : {0x803, n, side, side}) put_big32(file, uint32_t(value));
  for (int64_t i = 0; i < int64_t(n) * side * side; i++) file.push_back(noise(seed, i));
  return file;
}

inline Bytes idx_labels(int n) {  // 0, 1, ... 9, 0, ...
  Bytes file;
  for (int value : {0x801, n}) put_big32(file, uint32_t(value));
  for (int i = 0; i < n; i++) file.push_back(uint8_t(i % 10));
  return file;
}

// A folder for "mnist:" with n training and n / 2 test images.
inline void write_mnist(const std::string& folder, int n, int side = 12) {
  std::filesystem::create_directories(folder);
  write_bytes(folder + "/train-images-idx3-ubyte", idx_images(n, side));
  write_bytes(folder + "/train-labels-idx1-ubyte", idx_labels(n));
  write_bytes(folder + "/t10k-images-idx3-ubyte", idx_images(n / 2, side, 2));
  write_bytes(folder + "/t10k-labels-idx1-ubyte", idx_labels(n / 2));
}

inline Bytes cifar_records(int n, int classes, uint64_t seed = 3) {
  Bytes file;
  for (int i = 0; i < n; i++) {
    if (classes == 100) file.push_back(0);  // the coarse label
    file.push_back(uint8_t(i % classes));
    for (int j = 0; j < 3072; j++) file.push_back(noise(seed, int64_t(i) * 3072 + j));
  }
  return file;
}

// An 8-bit RGB or grey PNG.
inline Bytes png(const data::Image& image) {
  Bytes raw;
  size_t row = size_t(image.width) * size_t(image.channels);
  for (size_t y = 0; y < size_t(image.height); y++) {
    raw.push_back(0);  // no filter
    raw.insert(raw.end(), image.pixels.begin() + long(y * row),
               image.pixels.begin() + long((y + 1) * row));
  }
  uLongf length = compressBound(raw.size());
  Bytes packed(length);
  compress(packed.data(), &length, raw.data(), raw.size());
  packed.resize(length);
  Bytes file = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
  auto chunk = [&](const char* type, const Bytes& body) {
    put_big32(file, uint32_t(body.size()));
    size_t begin = file.size();
    file.insert(file.end(), type, type + 4);
    file.insert(file.end(), body.begin(), body.end());
    put_big32(file, uint32_t(crc32(0, file.data() + begin, unsigned(file.size() - begin))));
  };
  Bytes header;
  put_big32(header, uint32_t(image.width));
  put_big32(header, uint32_t(image.height));
  header.insert(header.end(), {8, uint8_t(image.channels == 3 ? 2 : 0), 0, 0, 0});
  chunk("IHDR", header);
  chunk("IDAT", packed);
  chunk("IEND", {});
  return file;
}

// A PNG with an orientation: the chunk eXIf behind the header.
inline Bytes turned_png(const data::Image& image, int orientation, bool little) {
  Bytes file = png(image), exif{'e', 'X', 'I', 'f'};
  Bytes tiff = little ? Bytes{'I', 'I', 42, 0, 8, 0, 0, 0, 1, 0, 0x12, 1, 3, 0, 1, 0, 0, 0}
                      : Bytes{'M', 'M', 0, 42, 0, 0, 0, 8, 0, 1, 1, 0x12, 0, 3, 0, 0, 0, 1};
  tiff.insert(tiff.end(),
              {uint8_t(little ? orientation : 0), uint8_t(little ? 0 : orientation), 0, 0});
  exif.insert(exif.end(), tiff.begin(), tiff.end());
  Bytes chunk;
  put_big32(chunk, uint32_t(tiff.size()));
  chunk.insert(chunk.end(), exif.begin(), exif.end());
  put_big32(chunk, uint32_t(crc32(0, exif.data(), unsigned(exif.size()))));
  file.insert(file.begin() + 33, chunk.begin(), chunk.end());
  return file;
}

inline data::Image noise_image(int height, int width, int channels, uint64_t seed) {
  data::Image image{height, width, channels, {}};
  for (int64_t i = 0; i < int64_t(height) * width * channels; i++)
    image.pixels.push_back(noise(seed, i));
  return image;
}

}  // namespace pupil::test
