// Images of 8-bit pixels: decoding, and what is done to them before a network sees them. The rules
// are Pillow's, to the byte where nothing else is said, since published checkpoints were trained
// and are evaluated with them.
#pragma once
#include "../models/models.h"

namespace pupil::data {

struct Image {  // rows of interleaved channels
  int height = 0, width = 0, channels = 0;
  std::vector<uint8_t> pixels;
};

struct Box {
  int top = 0, left = 0, height = 0, width = 0;
};
struct Region {  // of an image, in pixels from its upper left corner; parts of pixels count
  double top = 0, left = 0, bottom = 0, right = 0;
};

// A PNG or JPEG file, known by its content, as RGB: grey becomes three equal channels, alpha is
// dropped, 16-bit PNG keeps its high byte, CMYK (Adobe's, stored inverted) is
// (255 - c)(255 - k) / 255. The EXIF orientation is applied only when `upright`, as Pillow and the
// evaluation code of the public checkpoints leave it. Throws InputError that names `path`, also for
// more than 2^27 pixels, or more than the file's bytes can hold, before memory is taken for them.
Image decode_image(std::span<const uint8_t> file, const std::string& path, bool upright = false);

// A JPEG file of 1 or 3 channels, quality 1 ... 100, as a page or a viewer shows it.
std::string encode_jpeg(const Image&, int quality);

// --- size and place ---

// Pillow's resize of `region` (default: everything); pixels beside the region count as neighbours.
using models::Filter;
Image resize(const Image&, int height, int width, Filter, const std::optional<Region>& = {});
// `fill` has a value per channel, or one for all.
using Fill = std::vector<uint8_t>;
// The pixels of the box, `fill` where it reaches beyond the image.
void crop(const Image&, const Box&, const Fill& fill, Image& out);
// The middle height x width of an image of rows x columns, torchvision's: half a pixel goes to the
// even side, smaller images get a border of zeros first.
Box center_box(int rows, int columns, int height, int width);
Image flip_horizontally(const Image&);
Image flip_vertically(const Image&);
// Output pixel (x, y) shows the input at (a (x + 1/2) + b (y + 1/2) + c, d (x + 1/2) + e (y + 1/2)
// + f), matrix = (a, b, c, d, e, f), `fill` outside of the image. Filter: nearest; bilinear;
// bicubic, with a = -1 where resize has -1/2 (both truncate). InputError for another.
Image affine(const Image&, const std::array<double, 6>& matrix, Filter, const Fill& fill);
// About the centre, counter-clockwise.
Image rotate(const Image&, double degrees, Filter, const Fill& fill);

// --- colour; 1 or 3 channels, in place ---

// d + factor (x - d) in float32, cut to a byte: d is 0; the rounded mean of the grey image; the
// grey image; the smoothed image (3x3, its border stays).
void adjust_brightness(Image&, float factor);
void adjust_contrast(Image&, float factor);
void adjust_saturation(Image&, float factor);
void adjust_sharpness(Image&, float factor);
// Turns the hue of Pillow's 8-bit HSV by a share in [-1/2, 1/2] of the circle. Grey stays.
void adjust_hue(Image&, double factor);
Image grayscale3(const Image&);    // (19595 R + 38470 G + 7471 B + 2^15) / 2^16 in three channels
void posterize(Image&, int bits);  // keeps the high bits, 0 ... 8
void solarize(Image&, int threshold);  // inverts x >= threshold
void invert(Image&);
// Of each channel: the darkest level becomes 0 and the brightest 255; levels spread evenly.
void autocontrast(Image&);
void equalize(Image&);

// --- whole batches ---

// How the samples of a batch are mixed: sample k with sample partner[k].
struct Mix {
  bool cut = false;     // cutmix instead of mixup
  double lambda = 1;    // share that a sample keeps of itself
  double y = 0, x = 0;  // centre of the cut box in [0, 1)
};
// The box that cutmix exchanges in an image, clipped at the border.
Box cut_box(const Mix&, int height, int width);
// In place for the first rows of every tensor (n, ...), f32 or f64; tensors that are the same
// memory are mixed once. `partner` is a permutation of the first rows. A cut box scales with each
// tensor's size; targets (n, classes), f32 or f64, follow its area in the first. Of `smoothing` s
// each class gets s / classes and the label 1 - s more. Returns the lambda of the targets.
double apply_mix(const Mix&, const std::vector<int64_t>& partner, const Tensor& labels,
                 std::vector<Tensor>& x, Tensor& targets, double smoothing = 0);
// Random erasing (Zhong et al. 2017): value (..., h, w) into x (..., H, W) at (top, left), in
// place.
void erase(Tensor& x, const Tensor& value, int64_t top, int64_t left);

}  // namespace pupil::data
