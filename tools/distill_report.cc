#include "distill_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "../data/file.h"
#include "../tensor/memory.h"
#include "run_folder.h"
#include "text.h"

namespace pupil {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kShown = 24;  // photos of a student on the page

// "Great_white-shark" -> "great white shark"
std::string plain_name(const std::string& text) {
  std::string out;
  for (char c : text) {
    bool word = std::isalnum(uint8_t(c)) || (c & 0x80);
    if (word)
      out += char(std::tolower(uint8_t(c)));
    else if (!out.empty() && out.back() != ' ')
      out += ' ';
  }
  while (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

struct Answer {
  int64_t number;
  double probability;
};
std::vector<Answer> top_answers(const double* log_p, int64_t classes) {
  std::vector<Answer> all;
  for (int64_t c = 0; c < classes; c++) all.push_back({c, std::exp(log_p[c])});
  size_t n = std::min<size_t>(3, all.size());
  std::partial_sort(all.begin(), all.begin() + int64_t(n), all.end(),
                    [](const Answer& a, const Answer& b) {
                      return std::tie(b.probability, a.number) < std::tie(a.probability, b.number);
                    });
  all.resize(n);
  return all;
}

struct Photo {
  int64_t sample, label;
  double divergence;  // KL of the student's probabilities from the teacher's
  std::vector<Answer> teacher, student;
};

std::vector<Photo> compare_answers(const models::Model& model, const data::FeatureFile& file,
                                   const data::Dataset& set) {
  std::vector<Photo> photos;
  data::LoaderOptions options;
  options.batch = 64;
  data::Loader loader(set, {model.input}, options);
  NoGrad no_grad;
  nn::Prepared prepared;
  for (data::Batch batch; loader.next(batch);) {
    StepScope step;
    Tensor s =
        model.forward(batch.x[0], {.prepared = &prepared}).logits.to(Device{}).to(DType::f64);
    std::vector<double> student = log_softmax(s).values(),
                        teacher = log_softmax(file.gather(batch.index).to(DType::f64)).values();
    int64_t classes = s.dim(1);
    for (int64_t i = 0; i < s.dim(0); i++) {
      const double *log_s = student.data() + i * classes, *log_t = teacher.data() + i * classes;
      Photo photo{int64_t(photos.size()), -1, 0, top_answers(log_t, classes),
                  top_answers(log_s, classes)};
      for (int64_t c = 0; c < classes; c++)
        photo.divergence += std::exp(log_t[c]) * (log_t[c] - log_s[c]);
      photos.push_back(std::move(photo));
    }
  }
  return photos;
}

std::string base64(const std::string& bytes) {
  static constexpr char kDigits[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t word = 0;
    for (size_t k = 0; k < 3; k++)
      word = word << 8 | (i + k < bytes.size() ? uint8_t(bytes[i + k]) : 0);
    for (size_t k = 0; k < 4; k++)
      out += i + k > bytes.size() ? '=' : kDigits[word >> (18 - 6 * k) & 63];
  }
  return out;
}

// The photo in the page itself, at most 160 pixels wide and high.
std::string thumbnail(const data::Dataset& set, int64_t sample) {
  data::Image image;
  set.image(sample, image);
  double shrink = std::min(1.0, 160.0 / std::max(image.height, image.width));
  image = data::resize(image, std::max(1, int(image.height * shrink)),
                       std::max(1, int(image.width * shrink)), data::Filter::bilinear);
  return concat("<img alt=\"\" src=\"data:image/jpeg;base64,", base64(data::encode_jpeg(image, 80)),
                "\">");
}

std::string class_name_of(const DistillReport& report, int64_t c) {
  return size_t(c) < report.classes.size() ? data::printable(report.classes[size_t(c)])
                                           : std::to_string(c);
}

std::string answers_line(const DistillReport& report, const char* who,
                         const std::vector<Answer>& answers) {
  std::string line = concat("<div><b>", who, "</b> ");
  for (size_t k = 0; k < answers.size(); k++)
    line += fmt::format("{}{} {:.0f} %", k ? ", " : "",
                        html_escaped(class_name_of(report, answers[k].number)),
                        100 * answers[k].probability);
  return line + "</div>";
}

std::optional<double> share(int64_t right, int64_t all) {
  return all ? std::optional(double(right) / double(all)) : std::nullopt;
}

// Best, and after the first epoch, as metrics.jsonl tells them.
void read_epochs(StudentRow& row) {
  std::istringstream lines(read_file(row.run + "/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    Json j = Json::parse(line, nullptr, false);
    if (!j.is_object() || !j.contains("validation")) continue;
    row.epochs = j.value("epoch", row.epochs);
    if (row.epochs == 1) row.first_agreement = j["validation"].value("top1", 0.0);
  }
}

std::string percent_or_dash(const std::optional<double>& value) {
  return value ? fmt::format("{:.2f}", 100 * *value) : "-";
}
std::string megabytes(int64_t bytes) {
  return bytes ? fmt::format("{:.2f}", double(bytes) / 1e6) : "-";
}

std::vector<std::vector<std::string>> cells_of(const DistillReport& r) {
  std::vector<std::vector<std::string>> table{{"network", "parameters", "agreement %",
                                               "after epoch 1 %", "accuracy %", "epochs",
                                               "weights MB", "onnx MB", "ms a photo"}};
  table.push_back({"teacher " + r.teacher, std::to_string(r.teacher_parameters), "-", "-",
                   percent_or_dash(r.teacher_accuracy), "-", megabytes(r.teacher_bytes), "-",
                   fmt::format("{:.1f}", r.teacher_milliseconds)});
  for (const StudentRow& s : r.students)
    table.push_back({s.name, std::to_string(s.parameters), percent_or_dash(s.agreement),
                     percent_or_dash(s.first_agreement), percent_or_dash(s.accuracy),
                     concat(s.epochs, s.finished ? "" : ", time over"), megabytes(s.weights_bytes),
                     megabytes(s.onnx_bytes), fmt::format("{:.1f}", s.milliseconds)});
  return table;
}

std::string summary_of(const DistillReport& r) {
  std::string text =
      concat(r.photos, " photos of ", r.images, ": ", r.trained_on, " trained on, each ",
             r.views ? concat("in ", counted(r.views, "crop"), ", ") : "as it is, ",
             r.photos - r.trained_on,
             " held out. Agreement: on how many of the held-out photos a student gives the "
             "teacher's answer; one photo is ",
             fmt::format("{:.1f}", 100 / double(r.photos - r.trained_on)), " points. ");
  if (std::any_of(r.students.begin(), r.students.end(), [](auto& s) { return !s.finished; }))
    text += "Where the time was over, these photos also chose the epoch. ";
  text += r.labelled ? concat("Accuracy: on the ", r.labelled,
                              " held-out photos whose folder is called like a class; no student "
                              "has seen these names.")
                     : "No folder is called like a class, so there is no accuracy.";
  return text;
}

// What the students are worth: accuracy where folders tell it, else agreement.
double worth(const StudentRow& s) { return s.accuracy.value_or(s.agreement); }

// Points of it against something, a name at each.
std::string scatter(const DistillReport& r, const std::string& title,
                    const std::function<double(const StudentRow&)>& value) {
  double largest = 1e-9;
  for (const StudentRow& s : r.students) largest = std::max(largest, value(s));
  std::string svg = fmt::format(
      "<h2>{}</h2>\n<svg viewBox=\"0 0 640 240\" width=\"640\" height=\"240\" role=\"img\">"
      "<path d=\"M50 10V210H630\" class=\"axis\"/>",
      title);
  for (int tick = 0; tick <= 4; tick++)
    svg += fmt::format(
        "<text x=\"44\" y=\"{:.0f}\" text-anchor=\"end\">{} %</text>"
        "<text x=\"{}\" y=\"228\" text-anchor=\"middle\">{:.3g}</text>",
        214 - 50.0 * tick, 25 * tick, 50 + 130 * tick, largest * tick / 4);
  for (const StudentRow& s : r.students) {
    double x = 50 + 520 * value(s) / largest, y = 210 - 200 * worth(s);
    svg += fmt::format(
        "<circle cx=\"{0:.1f}\" cy=\"{1:.1f}\" r=\"4\"/><text x=\"{2:.1f}\" y=\"{3:.1f}\" "
        "text-anchor=\"{4}\">{5}</text>",
        x, y, x > 400 ? x - 8 : x + 8, y + 4, x > 400 ? "end" : "start", html_escaped(s.name));
  }
  return svg + "</svg>\n";
}

}  // namespace

int64_t class_named(const std::string& name, const std::vector<std::string>& classes) {
  std::string wanted = plain_name(name);
  if (wanted.empty()) return -1;
  for (size_t c = 0; c < classes.size(); c++) {
    if (plain_name(classes[c]) == wanted) return int64_t(c);
    std::istringstream synonyms(classes[c]);
    for (std::string one; std::getline(synonyms, one, ',');)
      if (plain_name(one) == wanted) return int64_t(c);
  }
  return -1;
}

int64_t class_of_path(const std::string& path, const std::string& root,
                      const std::vector<std::string>& classes) {
  namespace fs = std::filesystem;
  fs::path folder = fs::path(path).lexically_relative(root).parent_path();
  for (; !folder.empty(); folder = folder.parent_path())
    if (int64_t c = class_named(folder.filename().string(), classes); c >= 0) return c;
  return -1;
}

double milliseconds_of(const models::Model& model) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> times;
  NoGrad no_grad;
  const models::Preprocessing& p = model.input;
  Tensor image = zeros({1, p.channels, p.size, p.size});
  for (int k = 0; k < 18; k++) {
    StepScope step;
    auto begin = Clock::now();
    model.forward(image, {});
    if (k >= 3)
      times.push_back(std::chrono::duration<double, std::milli>(Clock::now() - begin).count());
  }
  std::nth_element(times.begin(), times.begin() + 7, times.end());
  return times[7];
}

std::string measure(const Network& student, StudentRow& row, DistillReport& report,
                    const data::Dataset& held_out) {
  row.parameters = student.store->count();
  std::vector<Photo> photos =
      compare_answers(student.model, data::FeatureFile(report.teacher_logits), held_out);
  row.milliseconds = milliseconds_of(student.model);
  read_epochs(row);
  int64_t same = 0, labelled = 0, right = 0, teacher_right = 0;
  std::string csv = "file,label,teacher,probability,student,probability,divergence\n";
  for (Photo& photo : photos) {
    const std::string& path = held_out.paths[size_t(photo.sample)];
    photo.label = class_of_path(path, report.images, report.classes);
    int64_t of_student = photo.student[0].number, of_teacher = photo.teacher[0].number;
    same += of_student == of_teacher;
    if (photo.label >= 0) {
      labelled++;
      right += of_student == photo.label;
      teacher_right += of_teacher == photo.label;
    }
    csv += concat(csv_field(path), ",",
                  photo.label < 0 ? "" : csv_field(class_name_of(report, photo.label)), ",",
                  csv_field(class_name_of(report, of_teacher)), ",", photo.teacher[0].probability,
                  ",", csv_field(class_name_of(report, of_student)), ",",
                  photo.student[0].probability, ",", photo.divergence, "\n");
  }
  data::write_file(row.run + "/held_out.csv", csv);
  row.agreement = double(same) / double(photos.size());
  row.accuracy = share(right, labelled);
  report.labelled = labelled;
  report.teacher_accuracy = share(teacher_right, labelled);

  std::sort(photos.begin(), photos.end(), [](const Photo& a, const Photo& b) {
    return std::tie(b.divergence, a.sample) < std::tie(a.divergence, b.sample);
  });
  photos.resize(std::min(photos.size(), kShown));
  std::string page = concat("<h2>Where ", html_escaped(row.name),
                            " and the teacher differ most</h2>", "\n<div class=\"photos\">\n");
  for (const Photo& photo : photos) {
    const std::string& path = held_out.paths[size_t(photo.sample)];
    page += concat("<figure>", thumbnail(held_out, photo.sample), "<figcaption><code>",
                   html_escaped(data::printable(path)), "</code>",
                   answers_line(report, "teacher", photo.teacher),
                   answers_line(report, "student", photo.student));
    if (photo.label >= 0)
      page +=
          concat("<div><b>folder</b> ", html_escaped(class_name_of(report, photo.label)), "</div>");
    page += "</figcaption></figure>\n";
  }
  return page + "</div>\n";
}

std::string table_of(const DistillReport& report) {
  return aligned(cells_of(report), {0}) + summary_of(report) + "\n";
}

std::string json_of(const DistillReport& r) {
  auto number = [](const std::optional<double>& v) { return v ? Json(*v) : Json(); };
  Json j{{"teacher", r.teacher},
         {"images", r.images},
         {"photos", r.photos},
         {"trained_on", r.trained_on},
         {"views", r.views},
         {"labelled", r.labelled},
         {"teacher_parameters", r.teacher_parameters},
         {"teacher_bytes", r.teacher_bytes},
         {"teacher_milliseconds", r.teacher_milliseconds},
         {"teacher_accuracy", number(r.teacher_accuracy)}};
  j["students"] = Json::array();
  for (const StudentRow& s : r.students)
    j["students"].push_back({{"name", s.name},
                             {"weights", s.weights},
                             {"onnx", s.onnx},
                             {"parameters", s.parameters},
                             {"weights_bytes", s.weights_bytes},
                             {"onnx_bytes", s.onnx_bytes},
                             {"epochs", s.epochs},
                             {"finished", s.finished},
                             {"agreement", s.agreement},
                             {"first_agreement", s.first_agreement},
                             {"accuracy", number(s.accuracy)},
                             {"milliseconds", s.milliseconds}});
  return j.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string page_of(const DistillReport& report, const std::string& disagreements) {
  std::string page =
      "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>pupil distill</title>\n"
      "<style>body{font:15px sans-serif;margin:2em;max-width:80em}table{border-collapse:collapse}"
      "td,th{padding:.3em .7em;text-align:right;border-bottom:1px solid #ccc}"
      "td:first-child,th:first-child{text-align:left}svg text{font-size:12px}"
      ".axis{fill:none;stroke:#999}.photos{display:flex;flex-wrap:wrap;gap:1em}"
      "figure{margin:0;width:15em;font-size:13px}code{overflow-wrap:anywhere}</style>\n"
      "<h1>pupil distill</h1>\n<table>\n";
  auto cells = cells_of(report);
  for (size_t r = 0; r < cells.size(); r++) {
    page += "<tr>";
    for (const std::string& cell : cells[r])
      page += fmt::format("<{0}>{1}</{0}>", r ? "td" : "th", html_escaped(cell));
    page += "</tr>\n";
  }
  page += concat("</table>\n<p>", html_escaped(summary_of(report)), "</p>\n");
  if (report.students.size() > 1) {
    const char* what = report.labelled ? "Accuracy" : "Agreement";
    page += scatter(report, concat(what, " against the time of one photo, ms"),
                    [](const StudentRow& s) { return s.milliseconds; });
    page += scatter(report, concat(what, " against size, MB"),
                    [](const StudentRow& s) { return double(s.weights_bytes) / 1e6; });
  }
  return page + disagreements + "</html>\n";
}

}  // namespace pupil
