#include "report.h"

#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "../data/file.h"
#include "config.h"
#include "kept.h"
#include "program.h"
#include "run_folder.h"
#include "study.h"
#include "text.h"
#include "transmiter_job.h"

namespace pupil {

double mean(const std::vector<double>& x) {
  double sum = 0;
  for (double v : x) sum += v;
  return x.empty() ? 0 : sum / double(x.size());
}

double deviation(const std::vector<double>& x) {
  double m = mean(x), sum = 0;
  for (double v : x) sum += (v - m) * (v - m);
  return x.size() < 2 ? 0 : std::sqrt(sum / double(x.size() - 1));
}

namespace {

using Json = nlohmann::ordered_json;
using Numbers = std::vector<double>;

struct Epoch {
  int64_t number;
  double loss;                     // of training
  std::optional<double> accuracy;  // top-1 on the validation data
};

struct RunRecord {
  std::string folder, settings;  // settings: the configuration without its seed
  Config config;
  int64_t parameters = 0;
  std::vector<Epoch> epochs;
  std::optional<double> validation, last, best;  // top-1; last and best on the test data
  double images = 0, train_seconds = 0, seconds = 0;
};

// The whole lines of a .jsonl file; a line that a killed run left half written is passed over.
std::vector<Json> read_lines(const std::string& path) {
  std::vector<Json> lines;
  std::istringstream text(read_file(path));
  for (std::string line; std::getline(text, line);) {
    Json j = Json::parse(line, nullptr, false);
    if (j.is_object()) lines.push_back(std::move(j));
  }
  return lines;
}

// Throws InputError for a run of which there is nothing to say.
RunRecord read_run(const std::string& folder) {
  if (is_transmiter(folder + "/config.toml"))
    fail_input("a run of pupil transmiter, see its table.txt");
  RunRecord run;
  run.folder = folder;
  while (run.folder.size() > 1 && run.folder.back() == '/') run.folder.pop_back();
  run.config = read_config(folder + "/config.toml");
  Config unseeded = run.config;
  unseeded.train.seed = 0;
  run.settings = to_toml(unseeded, false);
  std::string metrics = folder + "/metrics.jsonl";
  try {
    if (std::filesystem::exists(metrics))
      for (const Json& line : read_lines(metrics)) {
        if (line.contains("final")) {
          if (!line.contains("test")) continue;
          run.last = line["test"].at("last").at("top1").get<double>();
          if (line["test"].contains("best"))
            run.best = line["test"]["best"].at("top1").get<double>();
          continue;
        }
        Epoch epoch{line.at("epoch").get<int64_t>(), line.at("train").at("loss").get<double>(), {}};
        if (line.contains("validation")) {
          epoch.accuracy = line["validation"].at("top1").get<double>();
          run.validation = line.at("best").at("top1").get<double>();
        }
        run.epochs.push_back(epoch);
      }
    if (run.epochs.empty()) fail_input("no epoch finished yet");
    Json environment = Json::parse(read_file(folder + "/environment.json"));
    run.parameters = environment.at("sources").at("student").at("parameters").get<int64_t>();
    for (const Json& line : read_lines(folder + "/timing.jsonl")) {
      run.images += line.at("images").get<double>();
      run.train_seconds += line.at("train_seconds").get<double>();
      run.seconds += line.at("seconds").get<double>();
    }
  } catch (const Json::exception&) {
    fail_input("environment.json, metrics.jsonl or timing.jsonl is damaged");
  }
  return run;
}

// Runs that differ only in their seed.
struct Group {
  std::vector<const RunRecord*> runs;

  // What their folders have in common: "study/kd" of study/kd/seed1 and study/kd/seed2.
  std::string name() const {
    std::string common = runs[0]->folder;
    if (runs.size() == 1) return common;
    for (const RunRecord* run : runs) {
      auto [end, unused] =
          std::mismatch(common.begin(), common.end(), run->folder.begin(), run->folder.end());
      common.erase(end, common.end());
    }
    if (common.ends_with("/seed")) common.resize(common.size() - 4);
    while (common.size() > 1 && std::strchr("/-_.", common.back())) common.pop_back();
    return common.empty() ? runs[0]->folder : common;
  }
  std::string method() const {
    std::string text;
    for (const methods::Choice& m : runs[0]->config.methods)
      text += (text.empty() ? "" : "+") + m.method;
    return text.empty() ? "none" : text;
  }
  template <class F>
  Numbers collect(F&& f) const {
    Numbers list;
    for (const RunRecord* run : runs)
      if (std::optional<double> value = f(*run)) list.push_back(*value);
    return list;
  }
};

std::string mean_percent(const Numbers& x) {
  if (x.empty()) return "-";
  if (x.size() == 1) return fmt::format("{:.2f}", 100 * x[0]);
  return fmt::format("{:.2f} ± {:.2f}", 100 * mean(x), 100 * deviation(x));
}

using Skipped = std::vector<std::string>;  // "FOLDER: why it is not in the report"

std::vector<Group> group(const std::vector<RunRecord>& runs, Skipped& skipped) {
  std::vector<Group> groups;
  for (const RunRecord& run : runs) {
    auto same = [&](const Group& g) { return g.runs[0]->settings == run.settings; };
    auto at = std::find_if(groups.begin(), groups.end(), same);
    if (at == groups.end()) at = groups.insert(at, Group{});
    auto twin = std::find_if(at->runs.begin(), at->runs.end(), [&](const RunRecord* r) {
      return r->config.train.seed == run.config.train.seed;
    });
    if (twin == at->runs.end())
      at->runs.push_back(&run);
    else
      skipped.push_back(
          concat(run.folder, ": the same training with the same seed as ", (*twin)->folder));
  }
  return groups;
}

using Table = std::vector<std::vector<std::string>>;

Table table_of(const std::vector<Group>& groups) {
  Table table{{"run", "student", "method", "parameters", "lr", "epochs", "seeds", "validation %",
               "test last %", "test best %", "images/s", "seconds"}};
  for (const Group& g : groups) {
    const RunRecord& first = *g.runs[0];
    double images = 0, train_seconds = 0, seconds = 0;
    for (const RunRecord* run : g.runs) {
      images += run->images;
      train_seconds += run->train_seconds;
      seconds += run->seconds;
    }
    std::string student = first.config.student.model;
    table.push_back({g.name(), student.empty() ? first.config.student.weights : student, g.method(),
                     std::to_string(first.parameters), fmt::format("{}", first.config.train.lr),
                     std::to_string(first.epochs.size()), std::to_string(g.runs.size()),
                     mean_percent(g.collect([](const RunRecord& r) { return r.validation; })),
                     mean_percent(g.collect([](const RunRecord& r) { return r.last; })),
                     mean_percent(g.collect([](const RunRecord& r) { return r.best; })),
                     train_seconds > 0 ? fmt::format("{:.0f}", images / train_seconds) : "-",
                     fmt::format("{:.1f}", seconds / double(g.runs.size()))});
  }
  return table;
}

// One row per teacher of a group's first run, empty where no run has weights.
Table kept_table(const std::vector<Group>& groups) {
  Table table{{"run", "teacher", "dimensions", "mean sigmoid(s)", "deviation", "least", "largest",
               "above 0.5 %"}};
  for (const Group& g : groups)
    for (const KeptFeatures& kept : kept_features(g.runs[0]->folder)) {
      auto [least, largest] = std::minmax_element(kept.weights.begin(), kept.weights.end());
      table.push_back({g.runs[0]->folder, kept.teacher, std::to_string(kept.weights.size()),
                       fmt::format("{:.3f}", kept.mean()), fmt::format("{:.3f}", kept.deviation()),
                       fmt::format("{:.3f}", *least), fmt::format("{:.3f}", *largest),
                       fmt::format("{:.1f}", 100 * kept.share())});
    }
  if (table.size() == 1) table.clear();
  return table;
}

Json as_json(const std::vector<Group>& groups) {
  auto numbers = [](const Numbers& x) {
    return x.empty() ? Json() : Json{{"mean", mean(x)}, {"sigma", deviation(x)}, {"values", x}};
  };
  Json list = Json::array();
  for (const Group& g : groups) {
    Json j;
    j["name"] = g.name();
    for (const RunRecord* run : g.runs) j["runs"].push_back(run->folder);
    j["student"] = g.runs[0]->config.student.model;
    j["method"] = g.method();
    j["lr"] = g.runs[0]->config.train.lr;
    j["parameters"] = g.runs[0]->parameters;
    j["validation"] = numbers(g.collect([](const RunRecord& r) { return r.validation; }));
    j["test_last"] = numbers(g.collect([](const RunRecord& r) { return r.last; }));
    for (const KeptFeatures& kept : kept_features(g.runs[0]->folder))
      j["kept"].push_back({{"teacher", kept.teacher},
                           {"mean", kept.mean()},
                           {"above_half", kept.share()},
                           {"weights", kept.weights}});
    j["test_best"] = numbers(g.collect([](const RunRecord& r) { return r.best; }));
    list.push_back(j);
  }
  return list;
}

std::string colour(size_t group) {  // well apart around the colour circle
  return fmt::format("hsl({:.0f},65%,42%)", std::fmod(210 + 137.508 * double(group), 360.0));
}

// 1, 2 or 5 times a power of ten, for five to seven ticks around `range`.
double tick_distance(double range) {
  double unit = std::pow(10, std::floor(std::log10(range / 5)));
  for (double factor : {1, 2, 5})
    if (factor * unit >= range / 5) return factor * unit;
  return 10 * unit;
}

// One line per run, one colour per group.
std::string chart(const std::string& title, const std::vector<Group>& groups,
                  const std::function<std::optional<double>(const Epoch&)>& value) {
  double low = INFINITY, high = -INFINITY, last_epoch = 1;
  for (const Group& g : groups)
    for (const RunRecord* run : g.runs)
      for (const Epoch& e : run->epochs)
        if (auto v = value(e)) {
          low = std::min(low, *v);
          high = std::max(high, *v);
          last_epoch = std::max(last_epoch, double(e.number));
        }
  if (!(low <= high)) return "";
  if (low == high) high = low + 1;
  const double y_step = tick_distance(high - low);
  const double x_step = std::max(1.0, tick_distance(std::max(1.0, last_epoch - 1)));
  low = y_step * std::floor(low / y_step);
  high = y_step * std::ceil(high / y_step);
  const double left = 60, top = 20, width = 620, height = 280;
  auto x = [&](double epoch) {
    return left + width * (last_epoch > 1 ? (epoch - 1) / (last_epoch - 1) : 0.5);
  };
  auto y = [&](double v) { return top + height * (high - v) / (high - low); };
  std::string svg = fmt::format(
      "<h2>{}</h2>\n<svg viewBox=\"0 0 700 340\" width=\"700\" height=\"340\" role=\"img\">\n",
      html_escaped(title));
  for (double i = std::round(low / y_step); i <= std::round(high / y_step); i++)
    svg += fmt::format(
        "<line x1=\"{0:.1f}\" x2=\"{1:.1f}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\" class=\"grid\"/>"
        "<text x=\"{3:.1f}\" y=\"{4:.1f}\" text-anchor=\"end\">{5:.10g}</text>\n",
        left, left + width, y(i * y_step), left - 6, y(i * y_step) + 4, i * y_step);
  for (double epoch = x_step; epoch <= last_epoch; epoch += x_step)
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{:.10g}</text>\n",
                       x(epoch), top + height + 18, epoch);
  for (size_t i = 0; i < groups.size(); i++)
    for (const RunRecord* run : groups[i].runs) {
      std::string points, marks;
      for (const Epoch& e : run->epochs)
        if (auto v = value(e)) {
          points += fmt::format("{:.1f},{:.1f} ", x(double(e.number)), y(*v));
          if (run->epochs.size() == 1)
            marks = fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>",
                                x(double(e.number)), y(*v), colour(i));
        }
      svg += fmt::format("<polyline points=\"{}\" stroke=\"{}\"><title>{}</title></polyline>{}\n",
                         points, colour(i), html_escaped(run->folder), marks);
    }
  return svg + "</svg>\n";
}

std::string html(const std::vector<Group>& groups) {
  std::string page =
      "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>pupil report</title>\n"
      "<style>body{font:15px sans-serif;margin:2em;max-width:70em}table{border-collapse:collapse}"
      "td,th{padding:.3em .7em;text-align:right;border-bottom:1px solid #ccc}"
      "td:nth-child(-n+3),th:nth-child(-n+3){text-align:left}"
      "svg text{font-size:12px}.grid{stroke:#ddd}polyline{fill:none;stroke-width:1.5}</style>\n"
      "<h1>pupil report</h1>\n<table>\n";
  Table table = table_of(groups);
  for (size_t r = 0; r < table.size(); r++) {
    page += "<tr>";
    for (size_t c = 0; c < table[r].size(); c++) {
      std::string mark =
          r && !c ? fmt::format("<span style=\"color:{}\">&#9632;</span> ", colour(r - 1)) : "";
      page += fmt::format("<{0}>{1}{2}</{0}>", r ? "td" : "th", mark, html_escaped(table[r][c]));
    }
    page += "</tr>\n";
  }
  page +=
      "</table>\n<p>Runs that differ only in their seed are one row: mean ± standard deviation of "
      "the sample; seconds are the mean of one run. Accuracies are top-1.</p>\n";
  page += chart("Validation accuracy, %, by epoch", groups, [](const Epoch& e) {
    return e.accuracy ? std::optional(100 * *e.accuracy) : std::nullopt;
  });
  page +=
      chart("Training loss by epoch", groups, [](const Epoch& e) { return std::optional(e.loss); });
  Table kept = kept_table(groups);
  if (!kept.empty()) page += "<h2>Teacher features kept by AFT</h2>\n<table>\n";
  for (const auto& row : kept) {
    page += "<tr>";
    for (const std::string& cell : row)
      page += fmt::format("<{0}>{1}</{0}>", &row == &kept[0] ? "th" : "td", html_escaped(cell));
    page += "</tr>\n";
  }
  if (!kept.empty())
    page +=
        "</table>\n<p>The weight sigmoid(s) of each dimension starts at 0.5; only ratios of "
        "weights "
        "matter. Pictures: how many dimensions have which weight, and all dimensions from left to "
        "right, dark where the weight is large.</p>\n";
  for (const Group& g : groups)
    for (const KeptFeatures& of : kept_features(g.runs[0]->folder))
      page += fmt::format("<h3>{}: {}</h3>\n{}", html_escaped(g.runs[0]->folder),
                          html_escaped(of.teacher), kept_picture(of));
  for (const Group& g : groups)
    page += fmt::format("<details><summary>{}: configuration</summary><pre>{}</pre></details>\n",
                        html_escaped(g.name()), html_escaped(to_toml(g.runs[0]->config, false)));
  return page + "</html>\n";
}

struct ReportArguments {
  std::vector<std::string> runs;
  std::string out;
  bool json = false;
};

// A choice of the learning rate by `pupil train STUDY.toml`: STUDY/ARM/lrX, without a test set.
bool is_trial(const RunRecord& run) {
  namespace fs = std::filesystem;
  return run.config.data.test.empty() &&
         fs::path(run.folder).filename().string().starts_with("lr") &&
         fs::exists(concat(run.folder, "/../../", kStudyConfig));
}

// A run, or a folder of runs: then without the trials of a study, where there are other runs.
void collect(const std::string& folder, std::vector<RunRecord>& runs, Skipped& skipped) {
  namespace fs = std::filesystem;
  std::error_code error;
  std::vector<std::string> found;
  if (fs::exists(folder + "/config.toml", error)) {
    found.push_back(folder);
  } else {
    for (auto at = fs::recursive_directory_iterator(folder, error);
         !error && at != fs::recursive_directory_iterator(); at.increment(error))
      if (at->path().filename() == "config.toml")
        found.push_back(at->path().parent_path().string());
    if (error)
      skipped.push_back(concat(folder, ": ", error.message()));
    else if (found.empty())
      skipped.push_back(concat(folder, ": no run and none in it (no config.toml)"));
  }
  std::sort(found.begin(), found.end());
  std::vector<RunRecord> inside;
  for (const std::string& run : found) {
    try {
      inside.push_back(read_run(run));
    } catch (const InputError& reason) {
      skipped.push_back(concat(run, ": ", reason.what()));
    }
  }
  if (!std::all_of(inside.begin(), inside.end(), is_trial)) std::erase_if(inside, is_trial);
  runs.insert(runs.end(), inside.begin(), inside.end());
}

void report(const ReportArguments& a) {
  std::vector<RunRecord> runs;
  Skipped skipped;
  for (const std::string& folder : a.runs) collect(folder, runs, skipped);
  std::vector<Group> groups = group(runs, skipped);
  if (groups.empty())
    fail_input(fmt::format("report: no run to report: {}", fmt::join(skipped, "; ")));
  for (const std::string& line : skipped) std::cerr << "pupil: warning: skipped " << line << "\n";
  if (!a.out.empty()) data::write_file(a.out, html(groups));
  if (a.json)
    std::cout << as_json(groups).dump(2) << "\n";
  else {
    std::cout << aligned(table_of(groups), {0, 1, 2});
    Table kept = kept_table(groups);
    if (kept.empty()) return;
    std::cout << "\nTeacher features kept by AFT\n";
    std::cout << aligned(kept, {0, 1, 2});
  }
}

}  // namespace

void add_report_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("report", "compare runs: a table, and curves as HTML");
  command->footer("Example:\n  pupil report runs/teacher runs/students --out report.html");
  auto a = std::make_shared<ReportArguments>();
  command->add_option("runs", a->runs, "run folders, or folders of runs")->required();
  command->add_option("--out", a->out, "write one self-contained HTML file");
  command->add_flag("--json", a->json, "for machines");
  command->callback([a] { report(*a); });
}

}  // namespace pupil
