// The options of commands that ask CLIP about classes which are only named.
#pragma once
#include "network.h"

namespace CLI {
class App;
}

namespace pupil {

struct ZeroShotArguments {
  std::string classes, vocabulary;
  std::vector<std::string> templates;
  bool given() const { return !classes.empty() || !templates.empty() || !vocabulary.empty(); }
};
// --classes, --template and --vocab.
void add_zero_shot_options(CLI::App&, ZeroShotArguments&);
// What they say; `names` are the classes where --classes is not given. Without any of the options
// no classes: the network has a classifier of its own.
ZeroShot read_zero_shot(const ZeroShotArguments&, const std::vector<std::string>& names = {});

// One name a line. In ImageNet's lists a number such as n01440764 stands before it, which is not
// part of the name.
std::vector<std::string> read_names(const std::string& path);

}  // namespace pupil
