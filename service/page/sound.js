// One player for everything on the page, and the microphone.

export class Player {
  #audio;
  #stop = null;
  #button = null;
  #url = null;

  constructor(audio) {
    this.#audio = audio;
    const ended = () => this.stop();
    audio.addEventListener("ended", ended);
    audio.addEventListener("timeupdate", () => { if (this.#stop !== null && audio.currentTime >= this.#stop) ended(); });
  }

  /**
   * Play a sound from `start` to `end` seconds; a second press of the same button stops. `sound` gives its Blob when it
   * is needed. Rejects where it cannot be played.
   */
  async play(sound, button, start = 0, end = null) {
    const again = this.#button === button;
    this.stop();
    if (again) return;
    this.#button = button;
    button.textContent = "Stop";
    this.#stop = end;
    let blob;
    try {
      blob = await sound();
    } catch (error) {
      if (this.#button === button) this.stop();
      throw error;
    }
    if (this.#button !== button) return; // stopped meanwhile
    this.#url = URL.createObjectURL(blob);
    this.#audio.src = this.#url;
    try {
      if (start) {
        await new Promise((loaded, failed) => {
          this.#audio.addEventListener("loadedmetadata", loaded, { once: true });
          this.#audio.addEventListener("error", failed, { once: true });
          this.#audio.load();
        });
        this.#audio.currentTime = start;
      }
      await this.#audio.play();
    } catch (error) {
      if (this.#button === button) this.stop();
      if (error.name !== "AbortError") throw new Error("this sound cannot be played");
    }
  }

  stop() {
    this.#audio.pause();
    this.#stop = null;
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.#url = null;
    if (this.#button) this.#button.textContent = "Play";
    this.#button = null;
  }
}

export class Recorder {
  #recorder = null;
  #parts = [];

  get on() {
    return this.#recorder !== null;
  }

  /** Begin; rejects with a message where there is no microphone or it may not be used. */
  async start() {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error("the browser gives no microphone here: it does on localhost and over https");
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    } catch (error) {
      throw new Error(error.name === "NotAllowedError" ? "the microphone may not be used" : "there is no microphone");
    }
    this.#parts = [];
    this.#recorder = new MediaRecorder(stream);
    this.#recorder.addEventListener("dataavailable", (event) => this.#parts.push(event.data));
    this.#recorder.start();
  }

  /** End; what was recorded, as a Blob. */
  stop() {
    const recorder = this.#recorder;
    this.#recorder = null;
    return new Promise((done) => {
      recorder.addEventListener("stop", () => {
        recorder.stream.getTracks().forEach((track) => track.stop());
        done(new Blob(this.#parts, { type: recorder.mimeType }));
      });
      recorder.stop();
    });
  }
}
