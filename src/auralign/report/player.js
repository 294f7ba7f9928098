// Plays the stems of one item in step. All of them start together on the clock of one AudioContext and run
// through gains of their own; switching only moves gains, so the playing position never jumps.
"use strict";
(() => {
  document.documentElement.classList.add("js");
  const FADE_S = 0.008, LEAD_S = 0.03;
  let context = null, current = null;

  const bytes = (uri) => {
    const text = atob(uri.slice(uri.indexOf(",") + 1));
    const data = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) data[i] = text.charCodeAt(i);
    return data.buffer;
  };
  const clock = (s) => `${Math.floor(s / 60)}:${String(Math.floor(s % 60)).padStart(2, "0")}.${Math.floor((s % 1) * 10)}`;

  class Player {
    constructor(root) {
      this.root = root;
      this.lanes = [...root.querySelectorAll(".lane")];
      this.start = Number(root.dataset.start);
      this.duration = Number(root.dataset.duration);
      this.playButton = root.querySelector(".play");
      this.loopButton = root.querySelector(".loop");
      this.timeText = root.querySelector(".time");
      this.slider = root.querySelector(".seek");
      this.position = 0; this.playing = false; this.looping = false; this.buffers = null; this.sources = [];
      this.heard = new Set([0]);
      this.playButton.addEventListener("click", () => this.toggle());
      this.loopButton.addEventListener("click", () => this.setLoop(!this.looping));
      this.slider.addEventListener("input", () => this.seek(Number(this.slider.value)));
      this.lanes.forEach((lane, i) => {
        lane.querySelector(".stem").addEventListener("click", (event) => this.choose(i, event.shiftKey));
        const view = lane.querySelector(".view");
        const at = (event) => {
          const box = view.getBoundingClientRect();
          return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * this.duration;
        };
        view.addEventListener("pointerdown", (event) => { current = this; this.seek(at(event)); });
        view.addEventListener("pointermove", (event) => { if (event.buttons & 1) this.seek(at(event)); });
      });
      root.addEventListener("focusin", () => { if (!current || !current.playing) current = this; });
      this.show();
    }

    async load() {
      if (this.buffers) return;
      this.playButton.textContent = "Loading …";
      const sounds = this.lanes.map((lane) => lane.querySelector("audio").src);
      this.buffers = await Promise.all(sounds.map((uri) => context.decodeAudioData(bytes(uri))));
    }

    async toggle() {
      if (this.playing) { this.pause(); return; }
      context ??= new AudioContext();
      await context.resume();
      try { await this.load(); } catch (error) {
        this.playButton.textContent = "Cannot decode"; this.playButton.title = String(error); return;
      }
      if (current && current !== this) current.pause();
      current = this;
      if (this.position >= this.duration - 0.02) this.position = 0;
      this.begin();
    }

    begin() {
      this.stopSources();
      const when = context.currentTime + LEAD_S;
      this.sources = this.buffers.map((buffer, i) => {
        const source = context.createBufferSource(), gain = context.createGain();
        source.buffer = buffer; source.loop = this.looping;
        gain.gain.value = this.heard.has(i) ? 1 : 0;
        source.connect(gain).connect(context.destination);
        source.start(when, Math.min(this.position, buffer.duration));
        return { source, gain };
      });
      this.origin = when - this.position;
      this.playing = true;
      this.root.classList.add("live");
      this.show(); this.tick();
    }

    stopSources() {
      for (const { source, gain } of this.sources) {
        gain.gain.setTargetAtTime(0, context.currentTime, FADE_S / 3);
        source.stop(context.currentTime + 2 * FADE_S);
      }
      this.sources = [];
    }

    now() {
      if (!this.playing) return this.position;
      const passed = Math.max(0, context.currentTime - this.origin);
      return this.looping ? passed % this.duration : Math.min(passed, this.duration);
    }

    pause() {
      if (!this.playing) return;
      this.position = this.now(); this.playing = false; this.stopSources(); this.show();
    }

    seek(seconds) {
      this.position = Math.min(Math.max(0, seconds), this.duration);
      this.root.classList.add("live");
      if (this.playing) this.begin(); else this.show();
    }

    setLoop(on) {
      this.position = this.now(); this.looping = on;
      this.loopButton.setAttribute("aria-pressed", String(on));
      if (this.playing) this.begin();
    }

    choose(i, together) {
      if (i >= this.lanes.length) return;
      if (!together) this.heard = new Set([i]);
      else if (!this.heard.delete(i)) this.heard.add(i);
      if (this.heard.size === 0) this.heard.add(i);
      this.sources.forEach(({ gain }, k) =>
        gain.gain.setTargetAtTime(this.heard.has(k) ? 1 : 0, context.currentTime, FADE_S / 3));
      current = current && current.playing ? current : this;
      this.show();
    }

    show() {
      const at = this.now();
      this.playButton.textContent = this.playing ? "❚❚ Pause" : "▶ Play";
      this.playButton.setAttribute("aria-label", this.playing ? "Pause" : "Play");
      this.timeText.textContent = `${clock(this.start + at)} / ${clock(this.start + this.duration)}`;
      this.slider.value = String(at);
      this.slider.setAttribute("aria-valuetext", `${at.toFixed(1)} seconds of ${this.duration.toFixed(1)}`);
      this.lanes.forEach((lane, i) => {
        lane.classList.toggle("on", this.heard.has(i));
        lane.querySelector(".stem").setAttribute("aria-pressed", String(this.heard.has(i)));
        lane.querySelector(".head-line").style.left = `${(100 * at) / this.duration}%`;
      });
    }

    tick() {
      if (!this.playing) return;
      if (!this.looping && this.now() >= this.duration) { this.pause(); return; }
      this.show();
      requestAnimationFrame(() => this.tick());
    }
  }

  const players = [...document.querySelectorAll("[data-player]")].map((root) => new Player(root));
  document.addEventListener("keydown", (event) => {
    const player = current ?? players[0];
    if (!player || event.ctrlKey || event.metaKey || event.altKey) return;
    const on = (selector) => event.target instanceof Element && event.target.matches(selector);
    if (on("input[type=search], textarea, select, summary")) return;
    const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code);
    if (digit) player.choose(Number(digit[1]) - 1, event.shiftKey);
    else if (event.code === "Space" && !on("button, a")) player.toggle();
    else if (event.key === "l") player.setLoop(!player.looping);
    else if (event.key === "ArrowLeft" && event.target !== player.slider) player.seek(player.now() - 1);
    else if (event.key === "ArrowRight" && event.target !== player.slider) player.seek(player.now() + 1);
    else return;
    event.preventDefault();
  });
})();
