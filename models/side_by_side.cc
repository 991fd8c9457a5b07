#include "models.h"

namespace pupil::models {
namespace {

struct SideBySide {
  std::vector<Model> parts;
  int64_t inputs;  // values of a row; 0: images
  nn::Linear head;

  Output operator()(const Tensor& x, const nn::Call& call) const {
    Tensor row = x;
    if (inputs) {
      int64_t n = x.rank() ? x.dim(0) : 0;
      if (n < 1 || x.numel() != n * inputs)
        fail_input("networks side by side: rows of ", inputs, " values expected, got ", x.shape());
      row = view(to_strided(x), {n, inputs});
    }
    std::vector<Tensor> features;
    int64_t begin = 0;
    for (size_t k = 0; k < parts.size(); k++) {
      const Model& part = parts[k];
      std::string prefix = concat(k, ".");
      std::vector<std::string> wanted;
      for (const std::string& tap : part.taps)
        if (call.wants(prefix + tap)) wanted.push_back(tap);
      nn::Taps taps(wanted);
      nn::Call own = call;
      own.taps = &taps;
      Tensor seen = inputs ? slice(row, 1, begin, begin + part.inputs).contiguous() : x;
      features.push_back(part.forward(seen, own).features);
      for (const std::string& tap : wanted) call.see(prefix + tap, taps[tap]);
      begin += part.inputs;
    }
    Tensor all = cat(features, 1);
    return {head(all), all};
  }

  void fit(const Tensor& samples) const {  // (n, inputs)
    int64_t begin = 0;
    for (const Model& part : parts) {
      if (part.fit_inputs)
        part.fit_inputs(slice(samples, 1, begin, begin + part.inputs).contiguous());
      begin += part.inputs;
    }
  }
};

}  // namespace

std::vector<std::string> networks_of(const std::string& name) {
  std::vector<std::string> names{""};
  for (char c : name)
    if (c == '+')
      names.emplace_back();
    else
      names.back() += c;
  return names;
}

Model make_side_by_side(const std::vector<std::string>& names, const nn::Scope& scope,
                        const Options& options) {
  Options part_options = options;
  part_options.classes = 0;
  std::vector<Model> parts;
  Model model;
  for (const std::string& name : names) {
    parts.push_back(make_model(name, scope / int(parts.size()), part_options));
    const Model &first = parts[0], &part = parts.back();
    if ((first.inputs == 0) != (part.inputs == 0))
      fail_input("model: ", names[0], " and ", name, " side by side: one takes images, the other ",
                 "rows");
    if (!part.inputs && describe(part.input) != describe(first.input))
      fail_input("model: ", names[0], " and ", name, " side by side see the same image, but want ",
                 describe(first.input), " and ", describe(part.input));
    for (const std::string& tap : part.taps)
      model.taps.push_back(concat(parts.size() - 1, ".", tap));
    model.widths.push_back(part.width);
    model.width += part.width;
    model.inputs += part.inputs;
  }
  model.classes = options.classes;
  model.input = parts[0].input;
  model.head = "head";
  nn::Linear head(scope / "head", model.width, options.classes);
  auto net = std::make_shared<SideBySide>(SideBySide{std::move(parts), model.inputs, head});
  model.forward = [net](const Tensor& x, const nn::Call& call) { return (*net)(x, call); };
  if (model.inputs) model.fit_inputs = [net](const Tensor& x) { net->fit(x); };
  return model;
}

}  // namespace pupil::models
