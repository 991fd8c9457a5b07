// Readers are shown 20,000 damaged files each: any damage is answered with InputError or with what
// is still there to read, never with anything else. Meant for the sanitizers, where a stray read
// ends the program; tools/fuzz.sh runs these tests for longer.
#pragma once
#include <fstream>

#include "support.h"
#include "tensor/random.h"

namespace pupil::test {

inline std::string content(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void overwrite(const std::string& path, std::string_view bytes) {
  // Some file systems wait for the disk when a file is truncated and rewritten.
  std::filesystem::remove(path);
  std::ofstream(path, std::ios::binary).write(bytes.data(), std::streamsize(bytes.size()));
}

// The contents of the files with this ending, at most `largest` bytes each.
inline std::vector<std::string> seeds(const std::vector<std::string>& folders,
                                      const std::string& suffix, size_t largest) {
  std::vector<std::filesystem::path> paths;
  for (const std::string& folder : folders)
    for (const auto& entry : std::filesystem::directory_iterator(folder))
      if (entry.path().extension() == suffix && entry.file_size() <= largest)
        paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> out;
  for (const std::filesystem::path& path : paths) out.push_back(content(path.string()));
  return out;
}

struct FuzzOptions {
  std::string mention{};             // what a message names; default: the path
  std::vector<std::string> words{};  // of the format: put in somewhere
  bool lines = false;                // words are whole lines, and most changes put in one
  // Of every other file: makes checksums and lengths right again, so that what they guard is read.
  std::function<void(std::string&)> repair{};
};

// Makes the length of a safetensors header right: up to the brace that closes it, with its padding;
// where none does, up to the last.
inline void repair_safetensors(std::string& file) {
  size_t end = file.rfind('}');
  if (end == file.npos || end < 8) return;
  bool quoted = false;
  for (size_t i = 8, depth = 0; i < file.size(); i++) {
    if (quoted && file[i] == '\\')
      i++;
    else if (file[i] == '"')
      quoted = !quoted;
    else if (!quoted && file[i] == '{')
      depth++;
    else if (!quoted && file[i] == '}' && --depth == 0) {
      end = i;
      break;
    }
  }
  while (end + 1 < file.size() && file[end + 1] == ' ') end++;
  uint64_t length = end + 1 - 8;
  memcpy(file.data(), &length, 8);
}

// One of the seeds with up to four changes.
inline std::string mutate(const std::vector<std::string>& seeds, const FuzzOptions& options,
                          RngKey key) {
  int64_t at = 0;
  auto below = [&](size_t n) { return n ? random_bits(key, at++) % n : 0; };
  std::string s = seeds[below(seeds.size())];
  for (size_t step = 0, steps = 1 + below(4); step < steps && !s.empty(); step++) {
    // Structure lies at the front and the end of all formats.
    size_t window = std::min<size_t>(s.size(), 1024);
    size_t place = below(3) ? below(window) : s.size() - 1 - below(window);
    switch (below(options.words.empty() ? 6 : options.lines ? 18 : 8)) {
      case 0:  // a bit
        s[place] = char(s[place] ^ (1 << below(8)));
        break;
      case 1: {  // a number at its limits
        const uint8_t values[] = {0, 1, 0x7f, 0x80, 0xff};
        for (size_t i = 0, n = size_t(1) << below(4); i < n && place + i < s.size(); i++)
          s[place + i] = char(values[below(5)]);
        break;
      }
      case 2:  // cut off
        s.resize(place);
        break;
      case 3:  // bytes lost
        s.erase(place, 1 + below(16));
        break;
      case 4: {  // a piece of another file
        const std::string& other = seeds[below(seeds.size())];
        size_t from = below(other.size());
        s.insert(place, other.substr(from, 1 + below(64)));
        break;
      }
      case 5:  // a piece twice
        s.insert(place, s.substr(place, 1 + below(64)));
        break;
      default: {  // a word more, or in place of something
        const std::string& word = options.words[below(options.words.size())];
        size_t length = word.size();
        if (options.lines) {
          place = s.rfind('\n', place) + 1;
          length = std::min(s.find('\n', place), s.size() - 1) + 1 - place;
        }
        s.replace(place, below(2) * length, word);
      }
    }
  }
  if (options.repair && below(2)) options.repair(s);
  return s;
}

inline size_t held_memory(const char* what) {  // "VmHWM:" the peak, "VmRSS:" now; in bytes
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (word == what) {
      size_t kib = 0;
      status >> kib;
      return kib << 10;
    }
  return 0;
}

// Writes mutations of the seeds to `path` and parses each. PUPIL_FUZZ_INPUTS and PUPIL_FUZZ_SEED
// change their number and choice. A message must be one line.
inline void fuzz(const std::vector<std::string>& seeds, const std::string& path,
                 const std::function<void()>& parse, const FuzzOptions& options = {}) {
  auto setting = [](const char* name, int other) {
    const char* text = std::getenv(name);
    return text ? std::atoi(text) : other;
  };
  ASSERT_FALSE(seeds.empty());
  const std::string& mention = options.mention.empty() ? path : options.mention;
  const int rounds = setting("PUPIL_FUZZ_INPUTS", 20000), seed = setting("PUPIL_FUZZ_SEED", 2026);
  size_t largest = 0;
  for (const std::string& s : seeds) largest = std::max(largest, s.size());
  std::ofstream("/proc/self/clear_refs") << "5";  // the peak begins here
  [[maybe_unused]] const size_t before = held_memory("VmRSS:");
  int refused = 0;
  for (int i = 0; i < rounds; i++) {
    overwrite(path, mutate(seeds, options, {uint64_t(seed), uint32_t(i), 0}));
    std::string message;
    try {
      parse();
      continue;
    } catch (const InputError& e) {
      message = e.what();
      refused++;
    } catch (const std::exception& e) {
      FAIL() << "round " << i << ": " << e.what();
    }
    ASSERT_NE(message.find(mention), std::string::npos) << "round " << i << ": " << message;
    ASSERT_EQ(message.find('\n'), std::string::npos) << "round " << i << ": " << message;
  }
  EXPECT_GT(refused, rounds / 4);  // the mutations do reach the checks
  EXPECT_LT(refused, rounds);
#ifndef __SANITIZE_ADDRESS__  // which keeps what was freed
  EXPECT_LE(held_memory("VmHWM:"), before + largest + (size_t(64) << 20));
#endif
}

}  // namespace pupil::test
