"use strict";

async function sum(bytes) {
	const digest = await crypto.subtle.digest("SHA-256", bytes);
	return [...new Uint8Array(digest)].map((b) => b.toString(16).padStart(2, "0")).join("");
}

// fetched is what comes for a request past the cache.
async function fetched(uri, headers) {
	const response = await fetch(uri, { cache: "no-store", headers });
	const body = await response.arrayBuffer();
	return { status: response.status, size: body.byteLength, sum: await sum(body) };
}

function event(target, name) {
	return new Promise((resolve, reject) => {
		target.addEventListener(name, resolve, { once: true });
		target.addEventListener("error", () => reject(new Error(target.error.message)), { once: true });
	});
}

// shows returns once the video shows the frame of a time.
async function shows(video, time) {
	for (let at = -1; Math.abs(at - time) > 0.01; ) {
		at = await new Promise((resolve) => video.requestVideoFrameCallback((now, frame) => resolve(frame.mediaTime)));
	}
}

// seek goes to a time of the video and returns where it has arrived and the sum
// of the picture there.
async function seek(video, time) {
	const arrived = event(video, "seeked");
	const shown = shows(video, time);
	video.currentTime = time;
	await arrived;
	await shown; // which may be later
	const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
	const context = canvas.getContext("2d");
	context.drawImage(video, 0, 0);
	const picture = context.getImageData(0, 0, canvas.width, canvas.height).data;
	return { time: video.currentTime, picture: await sum(picture) };
}

// play lets the video run for a moment and returns how many frames it has shown.
async function play(video) {
	const from = video.currentTime;
	await video.play();
	while (video.currentTime < from + 0.2) {
		await event(video, "timeupdate");
	}
	video.pause();
	return video.getVideoPlaybackQuality().totalVideoFrames;
}

// report is what the page, once loaded, makes of all that it is made of.
async function report(times, uris, ranges) {
	await document.fonts.ready;
	const video = document.querySelector("video");
	if (video.error) {
		throw new Error(video.error.message);
	}
	if (video.readyState < HTMLMediaElement.HAVE_METADATA) {
		await event(video, "loadedmetadata");
	}
	const seeks = [];
	for (const time of times) {
		seeks.push(await seek(video, time));
	}
	return {
		seeks,
		played: await play(video),
		duration: video.duration,
		size: [video.videoWidth, video.videoHeight],
		images: [...document.images].map((image) => (image.complete ? image.naturalWidth : 0)),
		fonts: [...document.fonts].map((font) => font.status),
		whole: await Promise.all(uris.map((uri) => fetched(uri))),
		parts: await Promise.all(ranges.map((range) => fetched(video.src, { Range: range }))),
	};
}
