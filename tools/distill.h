// pupil distill: photographs and a teacher in, a small classifier out.
//
// The teacher looks at every photograph once as it is and then, as long as it is given time, in
// crops and mirrors (views); its logits are stored, one file a view. The students are ordinary
// training runs on these files: epoch e shows view e modulo their number, so teacher and student
// see the same pixels in every step, one pass of the teacher serves any number of students and
// epochs, and each student resumes and reproduces its bytes as every run does. A view for every
// epoch is the default up to 60: shown eight views again and again, a student learns them by heart.
#pragma once

namespace CLI {
class App;
}

namespace pupil {
void add_distill_command(CLI::App&);
}
