// Where pixels come from: crops, mirrors, affine maps (Pillow, src/libImaging/Geometry.c).
#include <algorithm>

#include "image.h"

namespace pupil::data {
namespace {

const uint8_t* pixel(const Image& image, int y, int x) {
  return image.pixels.data() +
         (size_t(y) * size_t(image.width) + size_t(x)) * size_t(image.channels);
}

uint8_t fill_of(const Fill& fill, size_t channel) { return fill[fill.size() == 1 ? 0 : channel]; }

Image filled(const Image& like, int height, int width, const Fill& fill) {
  if (fill.size() != 1 && fill.size() != size_t(like.channels))
    fail_input("image: ", fill.size(), " fill values for ", like.channels,
               " channels; give one, or one for each");
  Image out{height, width, like.channels, {}};
  out.pixels.resize(size_t(height) * size_t(width) * size_t(like.channels));
  for (size_t i = 0; i < out.pixels.size(); i++)
    out.pixels[i] = fill_of(fill, i % size_t(like.channels));
  return out;
}

// Keys' cubic with a = -1 through the four values, at d behind the second.
double cubic(const double* v, double d) {
  double p1 = v[1], p2 = v[2] - v[0], p3 = 2 * (v[0] - v[1]) + v[2] - v[3],
         p4 = v[1] - v[0] - v[2] + v[3];
  return p1 + d * (p2 + d * (p3 + d * p4));
}

// The image at (x, y), pixel centres at halves, for one channel.
double value_at(const Image& image, double x, double y, size_t channel, bool bicubic) {
  x -= 0.5;
  y -= 0.5;
  int left = int(std::floor(x)), top = int(std::floor(y)), count = bicubic ? 4 : 2;
  double dx = x - left, dy = y - top, rows[4];
  if (bicubic) left--, top--;
  for (int j = 0; j < count; j++) {
    int row = std::clamp(top + j, 0, image.height - 1);
    double v[4];
    for (int i = 0; i < count; i++)
      v[i] = pixel(image, row, std::clamp(left + i, 0, image.width - 1))[channel];
    rows[j] = bicubic ? cubic(v, dx) : v[0] + (v[1] - v[0]) * dx;
  }
  return bicubic ? cubic(rows, dy) : rows[0] + (rows[1] - rows[0]) * dy;
}

// The source of each pixel in a row, -1 outside: a running sum, as in Pillow.
std::vector<int> scaled(double first, double step, int count, int limit) {
  std::vector<int> places;
  double at = first + step * 0.5;
  for (int i = 0; i < count; i++, at += step)
    places.push_back(at >= 0 && at < limit ? int(at) : -1);
  return places;
}

}  // namespace

void crop(const Image& from, const Box& box, const Fill& fill, Image& out) {
  size_t channels = size_t(from.channels), row = size_t(box.width) * channels;
  out.height = box.height;
  out.width = box.width;
  out.channels = from.channels;
  out.pixels.resize(size_t(box.height) * row);
  // Of each row the columns that show something.
  int begin = std::clamp(-box.left, 0, box.width);
  int end = std::clamp(from.width - box.left, begin, box.width);
  for (int y = 0; y < box.height; y++) {
    uint8_t* to = out.pixels.data() + size_t(y) * row;
    int source = y + box.top;
    bool inside = source >= 0 && source < from.height && begin < end;
    size_t first = inside ? size_t(begin) * channels : row;
    size_t last = inside ? size_t(end) * channels : row;
    for (size_t i = 0; i < first; i++) to[i] = fill_of(fill, i % channels);
    if (inside) std::copy_n(pixel(from, source, begin + box.left), last - first, to + first);
    for (size_t i = last; i < row; i++) to[i] = fill_of(fill, i % channels);
  }
}

Box center_box(int rows, int columns, int height, int width) {
  auto begin = [](int have, int want) {
    return have < want ? -((want - have) / 2) : int(std::nearbyint((have - want) / 2.0));
  };
  return {begin(rows, height), begin(columns, width), height, width};
}

Image flip_horizontally(const Image& image) {
  Image out = image;
  uint8_t* to = out.pixels.data();
  for (int y = 0; y < image.height; y++)
    for (int x = image.width; x-- > 0;) to = std::copy_n(pixel(image, y, x), image.channels, to);
  return out;
}

Image flip_vertically(const Image& image) {
  Image out = image;
  size_t row = size_t(image.width) * size_t(image.channels);
  uint8_t* to = out.pixels.data();
  for (int y = image.height; y-- > 0;) to = std::copy_n(pixel(image, y, 0), row, to);
  return out;
}

Image affine(const Image& image, const std::array<double, 6>& matrix, Filter filter,
             const Fill& fill) {
  const double a = matrix[0], b = matrix[1], c = matrix[2];
  const double d = matrix[3], e = matrix[4], f = matrix[5];
  if (filter != Filter::nearest && filter != Filter::bilinear && filter != Filter::bicubic)
    fail_input("image: an affine map takes nearest, bilinear or bicubic");
  int height = image.height, width = image.width;
  Image out = filled(image, height, width, fill);
  size_t channels = size_t(image.channels);
  auto to = [&](int y, int x) { return const_cast<uint8_t*>(pixel(out, y, x)); };
  auto copy = [&](int y, int x, int64_t row, int64_t column) {
    if (row >= 0 && row < height && column >= 0 && column < width)
      std::copy_n(pixel(image, int(row), int(column)), channels, to(y, x));
  };
  if (filter == Filter::nearest && b == 0 && d == 0) {
    std::vector<int> rows = scaled(f, e, height, height), columns = scaled(c, a, width, width);
    for (int y = 0; y < height; y++)
      for (int x = 0; x < width; x++) copy(y, x, rows[size_t(y)], columns[size_t(x)]);
    return out;
  }
  // Pillow computes these places with 16 bits behind the point, while they fit.
  auto corner = [&](int x, int y) {
    return std::fabs(a * x + b * y + c) < 32768 && std::fabs(d * x + e * y + f) < 32768;
  };
  if (filter == Filter::nearest && corner(0, 0) && corner(width, 0) && corner(0, height) &&
      corner(width, height)) {
    auto fixed = [](double v) { return int64_t(std::floor(v * 65536 + 0.5)); };
    for (int y = 0; y < height; y++)
      for (int x = 0; x < width; x++)
        copy(y, x, (fixed(f + d * 0.5 + e * 0.5) + fixed(e) * y + fixed(d) * x) >> 16,
             (fixed(c + a * 0.5 + b * 0.5) + fixed(b) * y + fixed(a) * x) >> 16);
    return out;
  }
  for (int y = 0; y < height; y++)
    for (int x = 0; x < width; x++) {
      double u = a * (x + 0.5) + b * (y + 0.5) + c, v = d * (x + 0.5) + e * (y + 0.5) + f;
      if (!(u >= 0 && u < width && v >= 0 && v < height)) continue;
      if (filter == Filter::nearest) {
        copy(y, x, int64_t(v), int64_t(u));
        continue;
      }
      for (size_t k = 0; k < channels; k++)
        to(y, x)[k] =
            uint8_t(std::clamp(value_at(image, u, v, k, filter == Filter::bicubic), 0.0, 255.0));
    }
  return out;
}

Image rotate(const Image& image, double degrees, Filter filter, const Fill& fill) {
  double turn = std::fmod(degrees, 360);
  if (turn < 0) turn += 360;
  if (turn == 0) return image;
  if (turn == 180) return flip_vertically(flip_horizontally(image));
  if (image.height == image.width && (turn == 90 || turn == 270)) {
    int side = image.height;
    Image out = image;
    uint8_t* to = out.pixels.data();
    for (int y = 0; y < side; y++)
      for (int x = 0; x < side; x++)
        to = std::copy_n(turn == 90 ? pixel(image, x, side - 1 - y) : pixel(image, side - 1 - x, y),
                         image.channels, to);
    return out;
  }
  // 15 decimal places, so that the matrix of a right angle is exact.
  auto rounded = [](double v) { return std::nearbyint(v * 1e15) / 1e15; };
  double angle = -turn * M_PI / 180, cosine = rounded(std::cos(angle)),
         sine = rounded(std::sin(angle));
  double x = image.width / 2.0, y = image.height / 2.0;
  return affine(
      image, {cosine, sine, -x * cosine - y * sine + x, -sine, cosine, x * sine - y * cosine + y},
      filter, fill);
}

}  // namespace pupil::data
