// pupil distill: photographs and a teacher in, a small classifier out.
//
// The teacher looks at every photograph once as it is and then, as long as it is given time, in a
// few crops and mirrors (views); its logits are stored, one file a view. The students are ordinary
// training runs on these files: epoch e shows view e modulo their number, so teacher and student
// see the same pixels in every step, one pass of the teacher serves any number of students and
// epochs, and each student resumes and reproduces its bytes as every run does.
// The alternative, to ask the teacher in every step and train all students in one loop, asks it
// epochs / views times as often and ties the students to each other.
#pragma once

namespace CLI {
class App;
}

namespace pupil {
void add_distill_command(CLI::App&);
}
