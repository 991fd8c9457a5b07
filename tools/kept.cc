#include "kept.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "../data/weights.h"
#include "run_folder.h"

namespace pupil {

double KeptFeatures::mean() const {
  double sum = 0;
  for (double w : weights) sum += w;
  return sum / double(weights.size());
}

double KeptFeatures::deviation() const {
  double m = mean(), sum = 0;
  for (double w : weights) sum += (w - m) * (w - m);
  return std::sqrt(sum / double(weights.size()));
}

double KeptFeatures::share() const {
  auto grown = std::count_if(weights.begin(), weights.end(), [](double w) { return w > 0.5; });
  return double(grown) / double(weights.size());
}

std::vector<KeptFeatures> kept_features(const std::string& run) {
  std::string path = run + "/checkpoint.safetensors";
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return {};
  auto file = data::open_safetensors(path);
  if (!file->has("loss.aft.s")) return {};
  Tensor s = file->read("loss.aft.s", DType::f64);
  if (s.rank() != 1) return {};  // a dense map weights no single dimension
  std::vector<double> all = s.values();
  for (double& v : all) v = 1 / (1 + std::exp(-v));
  nlohmann::json environment =
      nlohmann::json::parse(read_file(run + "/environment.json"), nullptr, false);
  std::vector<KeptFeatures> kept;
  size_t begin = 0;
  try {
    for (const auto& teacher : environment.at("sources").at("teachers")) {
      size_t width = teacher.at("width").get<size_t>(), end = begin + width;
      if (width == 0 || end > all.size()) break;
      kept.push_back({teacher.at("name").get<std::string>(),
                      {all.begin() + int64_t(begin), all.begin() + int64_t(end)}});
      begin = end;
    }
  } catch (const nlohmann::json::exception& problem) {
    fail_input("report: ", run, "/environment.json cannot be read: ", problem.what());
  }
  if (begin != all.size())
    fail_input("report: ", run, " has ", all.size(), " weights, but its teachers have ", begin,
               " features; were its files changed?");
  return kept;
}

std::string kept_picture(const KeptFeatures& kept) {
  constexpr size_t kBins = 25;
  constexpr double kLeft = 60, kWidth = 620, kHeight = 120;
  std::vector<size_t> counts(kBins);
  for (double w : kept.weights) counts[std::min(kBins - 1, size_t(w * double(kBins)))]++;
  double highest = double(*std::max_element(counts.begin(), counts.end()));
  std::string svg =
      "<svg viewBox=\"0 0 700 190\" width=\"700\" height=\"190\" role=\"img\">"
      "<title>weights of the teacher's dimensions</title>\n";
  double step = kWidth / double(kBins);
  for (size_t b = 0; b < kBins; b++) {
    double height = kHeight * double(counts[b]) / highest;
    svg += fmt::format(
        "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"#4477aa\"/>",
        kLeft + step * double(b), 10 + kHeight - height, step - 1, height);
  }
  svg += fmt::format("<text x=\"{:.0f}\" y=\"20\" text-anchor=\"end\">{:.0f}</text>\n", kLeft - 6,
                     highest);
  for (double tick : {0.0, 0.25, 0.5, 0.75, 1.0})
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.0f}\" text-anchor=\"middle\">{}</text>",
                       kLeft + kWidth * tick, kHeight + 26, tick);
  // One column per dimension, or per few neighbours where there are more than fit.
  size_t columns = std::min(kept.weights.size(), size_t(kWidth));
  double column = kWidth / double(columns);
  for (size_t c = 0; c < columns; c++) {
    size_t first = c * kept.weights.size() / columns, end = (c + 1) * kept.weights.size() / columns;
    double sum = 0;
    for (size_t k = first; k < end; k++) sum += kept.weights[k];
    int grey = int(std::lround(255 * (1 - sum / double(end - first))));
    svg += fmt::format(
        "<rect x=\"{:.2f}\" y=\"158\" width=\"{:.2f}\" height=\"22\" fill=\"rgb({},{},{})\"/>",
        kLeft + column * double(c), column, grey, grey, grey);
  }
  return svg + "\n</svg>\n";
}

}  // namespace pupil
