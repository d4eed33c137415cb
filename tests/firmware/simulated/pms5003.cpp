// A PMS5003 as its manual describes it: it talks by itself until it is told to wait for questions.
#include "../simulation.h"

static struct Pms5003 : simulation::Talker {
  void hear(uint8_t data) override {
    command += char(data);
    while (!command.empty() && command[0] != 0x42) command.erase(0, 1);
    if (command.size() < 7) return;
    int sum = 0;
    for (int i = 0; i < 5; ++i) sum += uint8_t(command[i]);
    bool right = uint8_t(command[5]) == sum >> 8 && uint8_t(command[6]) == (sum & 255) && uint8_t(command[1]) == 0x4D;
    uint8_t what = uint8_t(command[2]), value = uint8_t(command[4]);
    command.clear();
    if (!right || simulation::fault("loose")) return;
    if (what == 0xE1) {
      passive = value == 0;
      simulation::say(framed(std::string{char(what), char(value)}), 0.005);
    } else if (what == 0xE2 && passive) {
      say_values();
    }
  }

  void tick() override {
    if (simulation::fault("loose")) passive = false;
    if (passive || simulation::now_s() < next_s) return;
    next_s = simulation::now_s() + 0.8;
    say_values();
  }

  static std::string framed(const std::string &body) {
    std::string frame{0x42, 0x4D, 0, char(body.size() + 2)};
    frame += body;
    int sum = 0;
    for (char one : frame) sum += uint8_t(one);
    return frame + char(sum >> 8) + char(sum);
  }

  void say_values() {
    if (simulation::fault("loose")) return;
    int n = int(simulation::now_s() * 10);
    int words[13] = {5, 8, 9, 4 + n % 3, 7 + n % 5, 8 + n % 7, 900 + n % 300, 260, 42, 6, 2, 1, 0x9700};
    std::string body;
    for (int word : words) body += {char(word >> 8), char(word)};
    std::string frame = framed(body);
    if (simulation::fault("noise")) frame[9] ^= 0x10;
    else simulation::truth({double(words[3]), double(words[4]), double(words[5]), double(words[6])});
    simulation::say(frame, 0.02);
  }

  std::string command;
  bool passive = false;
  double next_s = 0.1;
} sensor;

void plug_in() { simulation::talker = &sensor; }
